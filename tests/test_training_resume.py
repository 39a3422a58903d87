"""A run that is killed, at any moment, and gone on with: the same weights, bit for bit."""

import random
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_training import (
    assert_same_bits,
    finish,
    lines,
    start,
    write_videos,
)
from videomae_jax.training.checkpoints import Checkpoints

STEPS = 20
OPTIONS = ("--steps", STEPS, "--checkpoint-every", 1, "--optimizer.accumulate", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("data") / "videos", 16)


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The run that nothing happens to; it compiles for all."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, errors = finish(start("finetune", data, workdir, *OPTIONS))
    assert code == 0, errors
    return workdir


def done(workdir) -> int:
    """Steps that the metrics tell of."""
    try:
        return max((line["step"] for line in lines(workdir) if "loss" in line), default=0)
    # It isn't there yet, or a line is being written.
    except (OSError, ValueError):
        return 0


def kill_after(process, workdir, step, delay) -> None:
    """Kill the run a while after it tells of a step, which must not be its last."""
    while process.poll() is None and done(workdir) < step:
        time.sleep(0.002)
    time.sleep(delay)
    process.kill()
    code, errors = finish(process)
    assert code == -signal.SIGKILL, errors


def test_ten_kills_change_no_bit(data, alone, tmp_path):
    draw = random.Random(6)
    workdir = tmp_path / "run"
    kills = 0
    while kills < 10:
        process = start("finetune", data, workdir, *OPTIONS)
        # Some steps on, so that something is left for the kills to come.
        step = min(done(workdir) + draw.randint(1, 2), STEPS - 10 + kills)
        kill_after(process, workdir, step, draw.uniform(0, 0.02))
        kills += 1
    code, errors = finish(start("finetune", data, workdir, *OPTIONS))
    assert code == 0, errors
    assert_same_bits(workdir / "final", alone / "final")
    # Nothing is left of what was being written.
    kept = [
        sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (workdir, alone)
    ]
    assert kept[0] == kept[1]
    want, have = (
        [(line["step"], line["lr"], line.get("loss")) for line in lines(folder) if "loss" in line]
        for folder in (alone, workdir)
    )
    assert [step for step, _, _ in have] == list(range(1, STEPS + 1))
    assert have == want


def test_sigterm_writes_a_checkpoint(data, alone, tmp_path):
    workdir = tmp_path / "run"
    options = (*OPTIONS, "--checkpoint-every", 1000)
    process = start("finetune", data, workdir, *options)
    while process.poll() is None and done(workdir) < 2:
        time.sleep(0.002)
    process.terminate()
    code, errors = finish(process)
    assert code == 0, errors
    assert errors.splitlines()[-1].startswith("videomae: stopped by SIGTERM; run the same command")
    (checkpoint,) = (workdir / "checkpoints").iterdir()
    assert 2 <= int(checkpoint.name) < STEPS
    code, errors = finish(start("finetune", data, workdir, *options))
    assert code == 0, errors
    assert f"going on after step {checkpoint.name} of {STEPS}" in errors
    assert_same_bits(workdir / "final", alone / "final")


# --- the checkpoints themselves -------------------------------------------------------------------


def likeness(state):
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


def test_the_last_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    scores = {1: 0.1, 2: 0.7, 3: None, 4: 0.7, 5: 0.2, 6: None, 7: 0.5, 8: None}
    for step, score in scores.items():
        state = {"weight": jnp.full(3, float(step))}
        checkpoints.save(step, state, {"next_batch": step}, score=score)
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "c").iterdir()) == [4, 7, 8]
    again = Checkpoints(tmp_path / "c", keep=2)
    assert (again.latest, again.best) == (8, 4)
    for step in (8, 4):
        state, position = again.restore(likeness(state), step=step)
        assert (state["weight"].tolist(), position) == ([float(step)] * 3, {"next_batch": step})
    again.close()


def test_a_state_may_be_used_up_while_it_is_written(tmp_path):
    """Large enough that writing takes longer than the steps after it."""
    checkpoints = Checkpoints(tmp_path / "c", keep=9)
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    state = {"weight": jnp.zeros((2000, 2000)), "other": jnp.zeros((500, 3000))}
    for number in range(1, 4):
        state = step(state)
        checkpoints.save(number, state, {"next_batch": number})
        for _ in range(5):
            state = step(state)
    checkpoints.wait()
    for number in range(1, 4):
        found, _ = checkpoints.restore(likeness(state), step=number)
        for leaf in found.values():
            assert np.unique(leaf).tolist() == [6 * number - 5.0]
    checkpoints.close()


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=1)
    state = {"weight": jnp.zeros(2)}
    checkpoints.save(1, state, {"next_batch": 1})
    checkpoints.wait()
    with pytest.raises(ValueError, match=r"c/1: can't be read \(.*\); remove that folder"):
        checkpoints.restore(likeness({"weight": jnp.zeros(3)}))
    shutil.rmtree(tmp_path / "c" / "1" / "state")
    with pytest.raises(ValueError, match=r"c/1: can't be read"):
        checkpoints.restore(likeness(state))
    checkpoints.close()
