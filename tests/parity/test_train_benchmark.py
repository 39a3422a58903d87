"""The benchmark of training runs end to end, sees what disagrees, and takes ratios of turns."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import train
from benchmarks.train_theirs import Prepared
from benchmarks.turns import Side


def test_a_quick_run_says_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "peak_of", lambda options, name, side, source: 10 + len(side))
    monkeypatch.setattr(train.time, "sleep", lambda seconds: None)
    file = tmp_path / "figures.json"
    line = ["--quick", "--tasks", "pretrain", "--dtypes", "float32", "--json", str(file)]
    assert train.main(line) == 0
    (case,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    assert set(case["sides"]) == {"torch float32", "ours float32"}
    ours = case["sides"]["ours float32"]
    assert ours["agrees"]
    assert 0 < ours["gradient_relative_l2"] < 1e-5
    assert ours["loss"] == pytest.approx(case["sides"]["torch float32"]["loss"], rel=1e-6)
    assert len(ours["seconds"]) == len(ours["processor_seconds"]) == 2
    assert case["ratios"]["ours float32"]["peak_bytes"] == 22 / 23
    printed = capsys.readouterr().out
    assert "pretrain, tiny, 2 clips a step" in printed
    assert "DISAGREES" not in printed


def test_the_ratio_is_of_each_turn():
    theirs = {"seconds": [1.0, 10.0, 2.0], "processor_seconds": [2.0, 2.0, 2.0], "peak_bytes": 8}
    ours = {"seconds": [2.0, 5.0, 3.0], "processor_seconds": [1.0, 3.0, 4.0], "peak_bytes": 4}
    found = train.ratios({train.THEIRS: theirs, "ours float32": ours})
    wanted = {"seconds": 1.5, "processor_seconds": 1.5, "peak_bytes": 0.5}
    assert found == {"ours float32": wanted}


@pytest.mark.parametrize(
    ("side", "change", "loss", "agrees"),
    [
        ("ours float32", 0.9e-4, 1.0, True),
        ("ours float32", 1.1e-4, 1.0, False),
        ("ours float32", 0.0, 1.0 + 2e-5, False),
        ("ours bfloat16", 4e-2, 1.005, True),
        ("ours bfloat16", 6e-2, 1.0, False),
        ("ours bfloat16", float("nan"), 1.0, False),
    ],
)
def test_what_is_too_far_apart_disagrees(side, change, loss, agrees, monkeypatch):
    monkeypatch.setattr("benchmarks.train_ours.in_our_order", lambda task, gradient: gradient)
    wanted = Prepared(Side(int, int), 1.0, np.array([3.0, 4.0]))
    given = dataclasses.replace(wanted, loss=loss, gradient=wanted.gradient * (1 + change))
    assert train.agreement(None, side, given, wanted)["agrees"] is agrees
