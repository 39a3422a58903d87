"""Two processes of two devices each train one model."""

import signal
import time

import numpy as np
import pytest

from tests.test_batch_job_processes import DEVICES, free_port
from tests.test_training_resume import done
from tests.tiny_training import assert_same_bits, finish, lines, start, weights, write_videos

STEPS = 8
# Nothing that depends on rounding more than the sums over devices do: an average of the weights
# follows them, Adam's first steps follow the gradients' signs.
OPTIONS = ("--steps", STEPS, "--checkpoint-every", 1, "--optimizer.eps", 1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("data") / "videos", 16)


def start_both(data, workdir, *options):
    """One run in two processes."""
    among = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", 2)
    return [
        start(
            *("finetune", data, workdir, *OPTIONS, *among, "--process-id", index, *options),
            environment=DEVICES,
        )
        for index in range(2)
    ]


def run_both(data, workdir, *options):
    """The errors of both, which have ended well."""
    ended = [finish(process) for process in start_both(data, workdir, *options)]
    assert [code for code, _ in ended] == [0, 0], ended
    return [errors for _, errors in ended]


def assert_close(one, other):
    have, want = weights(one), weights(other)
    assert have.keys() == want.keys()
    for name in have:
        np.testing.assert_allclose(have[name], want[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """One process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, errors = finish(start("finetune", data, workdir, *OPTIONS))
    assert code == 0, errors
    return workdir


@pytest.fixture(scope="module")
def both(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("both") / "run"
    run_both(data, workdir)
    return workdir


def test_they_train_the_model_that_one_would(alone, both):
    assert_close(both / "final", alone / "final")
    names = ("step", "loss", "val_loss", "val_top1", "val_count")
    have, want = (
        [{name: line[name] for name in names if name in line} for line in lines(run)]
        for run in (both, alone)
    )
    assert have == [pytest.approx(line, rel=1e-5) for line in want]


def test_they_are_killed_and_go_on(data, both, tmp_path):
    workdir = tmp_path / "run"
    for step in (2, 5):
        processes = start_both(data, workdir)
        while done(workdir) < step:
            assert all(process.poll() is None for process in processes)
            time.sleep(0.002)
        for process in processes:
            process.kill()
        assert [finish(process)[0] for process in processes] == [-signal.SIGKILL] * 2
    run_both(data, workdir)
    assert_same_bits(workdir / "final", both / "final")
    steps = [line["step"] for line in lines(workdir) if "loss" in line]
    assert steps == list(range(1, STEPS + 1))


def test_parameters_in_parts(data, alone, tmp_path):
    """Whether they are cut is the business of `sharding.py`; here, that it changes nothing."""
    run_both(data, tmp_path / "run", "--sharding", "fsdp")
    assert_close(tmp_path / "run" / "final", alone / "final")


def test_sigterm_to_one_ends_both(data, both, tmp_path):
    workdir = tmp_path / "run"
    rare = ("--checkpoint-every", 1000)
    processes = start_both(data, workdir, *rare)
    while done(workdir) < 2:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    processes[1].terminate()
    ended = [finish(process) for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    assert all("stopped by SIGTERM" in errors for _, errors in ended)
    # One process goes on with what two have begun.
    code, errors = finish(start("finetune", data, workdir, *OPTIONS, *rare))
    assert code == 0, errors
    assert "going on after step" in errors
    assert_close(workdir / "final", both / "final")


def test_a_batch_must_be_divisible(data, tmp_path):
    processes = start_both(data, tmp_path / "run", "--input.batch-size", 6)
    ended = [finish(process) for process in processes]
    assert [code for code, _ in ended] == [2, 2]
    assert all("input.batch_size 6 can't be divided among 4 devices" in text for _, text in ended)
