"""Many processes and devices, one OUT."""

import signal
import socket
import time

import pytest

from tests.batch_job import (
    assert_same,
    finish,
    last_line,
    rows,
    run,
    start,
    write_clips,
    write_model,
)

DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """More rows than a shard has in one piece; most are bad, which is quick."""
    folder = tmp_path_factory.mktemp("many")
    paths = [path.name for path in write_clips(folder / "clips", 20)]
    lines = [f"clips/{paths[number // 60 % 20]}" for number in range(2500)]
    for number in range(2500):
        if number % 60:
            lines[number] = f"clips/none-{number}.mp4"
    (folder / "list.txt").write_text("\n".join(lines))
    return folder / "list.txt"


@pytest.fixture(scope="module")
def alone(model, manifest, tmp_path_factory):
    """Rows of one process with one device."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert run(manifest, out, "--model", model, "--batch", 4) == 0
    return rows(out)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_two_processes_of_two_devices_each(model, manifest, alone, tmp_path):
    address = f"127.0.0.1:{free_port()}"
    among = ("--distributed", "--coordinator", address, "--num-processes", 2)
    processes = [
        start(
            manifest,
            tmp_path / "out",
            *("--model", model, "--batch", 3, *among, "--process-id", index),
            environment=DEVICES,
        )
        for index in range(2)
    ]
    ended = [finish(process) for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    shares = [last_line(errors)["done"] for _, errors in ended]
    assert shares == [1024 + 452, 1024]
    assert_same(alone, rows(tmp_path / "out"))
    assert alone["error"].isna().sum() == 42


def begin_two(manifest, out, *options, alone=((), ())):
    """Two processes that write what they have at once; `alone` are options of one."""
    address = f"127.0.0.1:{free_port()}"
    among = ("--distributed", "--coordinator", address, "--num-processes", 2, "--batch", 3)
    return [
        start(manifest, out, *options, *among, "--process-id", each, "--flush-seconds", 0.1, *more)
        for each, more in enumerate(alone)
    ]


def wait_for_parts(out, shard, process):
    while not list(out.glob(f"part-*-{shard:05d}-of-00002-*")):
        assert process.poll() is None, finish(process)
        time.sleep(0.05)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_takes_no_other_with_it(model, manifest, alone, tmp_path, lost):
    processes = begin_two(manifest, tmp_path / "out", "--model", model)
    wait_for_parts(tmp_path / "out", lost, processes[lost])
    processes[lost].kill()
    processes[lost].communicate()
    code, errors = finish(processes[1 - lost])
    assert code == 0, errors
    assert (1476, 1024)[1 - lost] <= len(rows(tmp_path / "out")) < 2500
    assert run(manifest, tmp_path / "out", "--model", model, "--batch", 4) == 0
    assert_same(alone, rows(tmp_path / "out"))


def test_a_process_that_ends_early_ends_no_other(model, manifest, tmp_path):
    few = ("--max-failures", 3)
    processes = begin_two(manifest, tmp_path / "out", "--model", model, alone=(few, ()))
    code, errors = finish(processes[0])
    assert code == 3
    assert "more than --max-failures 3" in errors
    code, errors = finish(processes[1])
    assert (code, last_line(errors)["done"]) == (0, 1024), errors


def test_sigterm_is_heard_by_each_process(model, manifest, tmp_path):
    processes = begin_two(manifest, tmp_path / "out", "--model", model)
    for each, process in enumerate(processes):
        wait_for_parts(tmp_path / "out", each, process)
        process.send_signal(signal.SIGTERM)
    for process in processes:
        code, errors = finish(process)
        assert code == 0
        assert last_line(errors)["event"] == "stopped", errors
    assert len(rows(tmp_path / "out")) < 2500


def test_a_process_that_can_not_begin_does_not_wait_for_the_others(model, manifest, tmp_path):
    wrong = ("--views", "nonsense")
    processes = begin_two(manifest, tmp_path / "out", "--model", model, alone=((), wrong))
    wait_for_parts(tmp_path / "out", 0, processes[0])
    # It is not done before the other one is gone.
    processes[0].send_signal(signal.SIGSTOP)
    try:
        code, errors = finish(processes[1])
    finally:
        processes[0].send_signal(signal.SIGCONT)
    assert code == 2
    assert "views are SEGMENTSxCROPS" in errors
    code, errors = finish(processes[0])
    assert (code, last_line(errors)["done"]) == (0, 1476), errors


@pytest.mark.parametrize("way", ["fsdp", "tensor"])
def test_sharded_parameters(model, manifest, alone, tmp_path, way):
    options = ("--model", model, "--batch", 2, "--sharding", way, "--model-axis", 2)
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    process = start(manifest, tmp_path / "out", *options, "--limit", 500, environment=devices)
    code, errors = finish(process)
    assert code == 0, errors
    assert_same(alone[:500], rows(tmp_path / "out"))


def test_shards_by_hand(model, manifest, alone, tmp_path):
    for shard in ("1/3", "0/3", "2/3"):
        options = ("--model", model, "--batch", 4, "--shard", shard)
        assert run(manifest, tmp_path / "out", *options) == 0
    assert_same(alone, rows(tmp_path / "out"))


def test_options_that_go_together(model, manifest, tmp_path, capsys):
    options = ("--model", model, "--distributed", "--process-id", 0)
    assert run(manifest, tmp_path / "out", *options) == 2
    assert "--process-id go together" in capsys.readouterr().err
