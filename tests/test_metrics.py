"""What is noted of a run, and shown of it."""

import io
import json
import math
import sys
import time
import types

import pytest

from videomae_jax.training.metrics import Interval, Metrics, Progress, TensorBoard, Wandb


def read(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class Kept:
    """A writer that keeps what it gets."""

    def __init__(self):
        self.lines, self.closed = [], False

    def write(self, line):
        self.lines.append(dict(line))

    def close(self):
        self.closed = True


def test_a_line_is_json_whatever_the_loss(tmp_path):
    other = Kept()
    metrics = Metrics(tmp_path / "m.jsonl", writers=(other,))
    metrics.write({"step": 1, "loss": 0.123456789123, "lr": 1e-12})
    assert len(read(tmp_path / "m.jsonl")) == 1, "it is on the disk at once"
    metrics.write({"step": 2, "loss": math.nan, "grad_norm": math.inf})
    metrics.close()
    wanted = [
        {"step": 1, "loss": 0.1234568, "lr": 1e-12},
        {"step": 2, "loss": None, "grad_norm": None},
    ]
    assert read(tmp_path / "m.jsonl") == wanted == other.lines
    assert other.closed


def test_a_resumed_run_writes_no_step_twice(tmp_path):
    file = tmp_path / "m.jsonl"
    metrics = Metrics(file)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": 1.0})
    metrics.close()
    # Killed within a line.
    with file.open("a") as end:
        end.write('{"step": 6, "lo')
    metrics = Metrics(file, resumed=3)
    metrics.write({"step": 4, "loss": 2.0})
    metrics.close()
    found = [(line["step"], line["loss"]) for line in read(file)]
    assert found == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert [path.name for path in tmp_path.iterdir()] == ["m.jsonl"]
    Metrics(file).close()
    assert read(file) == []


def test_an_interval_is_a_mean_and_a_speed(monkeypatch):
    clock = iter([100.0, 104.0, 104.0, 110.0, 111.0, 111.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    interval = Interval(clips=6, steps_per_epoch=8)
    interval.add(1.0, 10.0)
    interval.add(3.0, 30.0)
    interval.waited(1.0)
    # 100 to 104.
    assert interval.line(2, 0.5) == {
        "step": 2,
        "epoch": 0.25,
        "lr": 0.5,
        "loss": 2.0,
        "grad_norm": 20.0,
        "clips_per_s": 3.0,
        "data_wait": 0.25,
    }
    interval.add(5.0, 1.0)
    interval.waited(3.0)
    # A pause that ends at 110, and a step to 111: losses count, times before don't.
    interval.pause()
    interval.add(7.0, 2.0)
    line = interval.line(4, 0.25)
    assert (line["loss"], line["grad_norm"]) == (6.0, 1.5)
    assert (line["clips_per_s"], line["data_wait"]) == (6.0, 0.0)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar():
    stream = Terminal()
    progress = Progress(5, 2, stream=stream)
    progress.step()
    progress.tell({"step": 3, "loss": 0.25})
    progress.close()
    last = stream.getvalue().split("\r")[-1]
    assert "3/5" in last
    assert "loss=0.25" in last


def test_elsewhere_there_is_a_line_now_and_then():
    stream = io.StringIO()
    progress = Progress(5, 0, stream=stream)
    for step in range(1, 4):
        progress.step()
        progress.tell({"step": step, "loss": step / 3})
    progress.tell({"step": 4, "val_top1": 0.5}, always=True)
    progress.tell({"step": 5, "loss": 0.25})
    progress.close()
    # The first, what must be said, and the last.
    assert stream.getvalue() == (
        "step 1 of 5: loss 0.3333\nstep 4 of 5: val_top1 0.5\nstep 5 of 5: loss 0.25\n"
    )


def test_tensorboard_has_the_figures(tmp_path, monkeypatch):
    writer = TensorBoard(tmp_path)
    writer.write({"step": 3, "loss": 0.5, "val_top1": 0.25, "grad_norm": None})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    content = file.read_bytes()
    assert b"loss" in content
    assert b"val/top1" in content
    assert b"grad_norm" not in content
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ValueError, match="pip install tensorboardX"):
        TensorBoard(tmp_path)


def test_wandb_gets_the_figures(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(
        log=lambda figures, step: calls.append((figures, step)),
        finish=lambda: calls.append("finish"),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = Wandb(tmp_path / "my-run", {"seed": 3})
    writer.write({"step": 3, "loss": 0.5})
    writer.close()
    begun, *rest = calls
    assert (begun["name"], begun["resume"], begun["config"]) == ("my-run", "allow", {"seed": 3})
    assert rest == [({"loss": 0.5}, 3), "finish"]
    for folder, same in ((tmp_path / "my-run", True), (tmp_path / "other" / "my-run", False)):
        Wandb(folder, {})
        assert (calls[-1]["id"] == begun["id"]) == same
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        Wandb(tmp_path, {})
