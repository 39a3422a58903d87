"""The forward benchmark runs end to end, its JSON is whole, and it sees what disagrees."""

import itertools
import json

import numpy as np
import pytest
import torch

from benchmarks import forward, forward_cases, sides, turns
from benchmarks.forward_cases import MODELS, Case, agreement, best_batches
from benchmarks.forward_text import as_text

QUICK = ["--quick", "--dtypes", "float32"]
OURS, REFERENCE = "ours float32", forward_cases.REFERENCE


@pytest.fixture(autouse=True)
def no_peak(monkeypatch):
    """Large products take seconds and prove nothing here."""
    monkeypatch.setattr(sides, "matmul_peak", lambda dtype: 1e12 if dtype == "float32" else None)


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(turns, "SECONDS_A_SAMPLE", 1e-9)
    monkeypatch.setattr(turns, "PAUSE", 0.0)


def test_a_quick_run_says_everything(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert forward.main(["--quick", "--json", str(file)]) == 0
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["machine"]["cores"] >= 1
    assert {"python", "jax", "flax", "torch", "transformers"} <= set(content["versions"])
    assert content["command"].startswith("python ")
    assert set(content["threads"]) == {"XLA", "torch"}
    assert content["matmul_peak_flops_per_second"] == {"float32": 1e12, "bfloat16": None}
    assert content["disagreements"] == []
    (case,) = content["cases"]
    assert (case["model"], case["heads"], case["batch"]) == ("tiny", 6, 2)
    both = [name.replace("float32", "bfloat16") for name in (OURS, REFERENCE)]
    assert set(case["sides"]) == {OURS, REFERENCE, *both}
    pairs = itertools.product((OURS, both[0]), (REFERENCE, both[1]))
    assert set(case["ratios"]) == {f"{ours} / {theirs}" for ours, theirs in pairs}
    for name, side in case["sides"].items():
        assert len(side["seconds"]) == 2
        rate = case["batch"] / side["median_seconds"]
        assert side["clips_per_second"] == pytest.approx(rate)
        share = rate * case["flops_per_clip"] / 1e12
        known = pytest.approx(share) if name.endswith(" float32") else None
        assert side["share_of_matmul_peak"] == known
        assert side["seconds_to_prepare"] > 0
    assert 0 < case["sides"][OURS]["agreement"]["relative_l2"] < 2e-6
    assert 2e-6 < case["sides"][both[0]]["agreement"]["relative_l2"] < 1e-2
    assert all(side["agreement"]["agrees"] for side in case["sides"].values())
    printed = capsys.readouterr()
    assert "tiny, 6 heads, batch 2" in printed.out
    assert "DISAGREES" not in printed.out
    assert "best batch" not in printed.out
    content["cases"].append(case | {"batch": 4, "share_of_cores_used_by_others": 0.31})
    assert "DISTURBED: other processes used 31% of the cores" in as_text(content)
    assert f"tiny, 6 heads, {OURS}" in as_text(content).partition("best batch")[2]


def test_another_weight_is_seen(monkeypatch, capsys):
    def other_weights(config, params, dtype):
        params = dict(params) | {"fc_norm": {**params["fc_norm"]}}
        params["fc_norm"]["bias"] = params["fc_norm"]["bias"] + np.float32(1e-3)
        return ours(config, params, dtype)

    ours = sides.ours
    monkeypatch.setattr(sides, "ours", other_weights)
    assert forward.main(QUICK) == 1
    (first, *_) = [line for line in capsys.readouterr().out.splitlines() if "DISAGREES" in line]
    assert first.startswith("DISAGREES: tiny, 6 heads, batch 2, ours float32: relative L2 ")


def test_what_does_not_compile_is_recorded(monkeypatch, capsys, tmp_path):
    def refuse(model, **options):
        raise RuntimeError("no compiler here\nin many words")

    file = tmp_path / "figures.json"
    monkeypatch.setattr(torch, "compile", refuse)
    case = Case("tiny", 6, 1, ("float32",), ("compile",))
    monkeypatch.setattr(forward, "cases_of", lambda options: [case])
    assert forward.main([*QUICK, "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text(encoding="utf-8"))["cases"]
    reason = {"not_measured": "RuntimeError: no compiler here"}
    assert found["sides"]["torch compile float32"] == reason
    # Needed for its logits, so it ran, but took no turns.
    assert "median_seconds" not in found["sides"][REFERENCE]
    assert found["ratios"] == {}
    assert "not measured (RuntimeError: no compiler here)" in capsys.readouterr().out


def test_too_little_memory_is_recorded_and_a_failure_of_ours_is_not_hidden(monkeypatch):
    def fail(net, clips, dtype):
        raise RuntimeError(message)

    monkeypatch.setattr(sides, "prepare_ours", fail)
    case = Case("tiny", 6, 1, ("float32",), ("eager",))
    with sides.network(case.config) as net:
        message = "RESOURCE_EXHAUSTED: Out of memory while trying to allocate"
        found = forward_cases.measure(case, net, {}, pairs=1)
        assert found["sides"][OURS] == {"not_measured": f"RuntimeError: {message}"}
        message = "INTERNAL"
        with pytest.raises(RuntimeError, match="INTERNAL"):
            forward_cases.measure(case, net, {}, pairs=1)


def test_where_torch_has_no_such_device_ours_is_measured_alone(monkeypatch):
    monkeypatch.setattr(sides, "torch_is_elsewhere", lambda: True)
    case = Case("tiny", 6, 1, ("float32",), ("eager", "compile"))
    with sides.network(case.config) as net:
        found = forward_cases.measure(case, net, {}, pairs=1)
    assert found["sides"][OURS]["agreement"]["agrees"]
    assert found["sides"][OURS]["share_of_matmul_peak"] is None
    assert found["sides"][OURS]["median_seconds"] > 0
    for name in (REFERENCE, "torch compile float32"):
        assert "median_seconds" not in found["sides"][name]
        assert found["sides"][name]["not_measured"]
    assert found["ratios"] == {}


def test_agreement_of_the_best_class_counts_where_it_is_clear():
    wanted = np.array([[0.0, 5.0, 1.0, 4.999], [0.0, 1.0, 2.0, 4.0]], np.float32)
    given = wanted.copy()
    given[0, 3] = 5.001
    found = agreement(given, wanted, 1e-2)
    assert found["agrees"]
    assert found["clips_with_clear_top_1"] == 1
    given[1] = [0.0, 1.0, 4.0, 2.0]
    assert not agreement(given, wanted, 10.0)["agrees"]
    assert not agreement(wanted * np.float32(1.02), wanted, 1e-2)["agrees"]
    assert not agreement(wanted * np.float32(np.nan), wanted, 1e-2)["agrees"]


def test_every_dtype_has_its_opponents():
    dtypes, ways = ("float32", "bfloat16"), ("eager", "compile")
    both = Case("small", 16, 4, dtypes, ways)
    assert list(both.sides()) == [
        REFERENCE,
        "ours float32",
        "ours bfloat16",
        "torch compile float32",
        "torch eager bfloat16",
        "torch compile bfloat16",
    ]
    assert both.config.num_attention_heads == 16
    low = Case("small", 6, 1, ("bfloat16",), ways)
    assert list(low.sides()) == [
        REFERENCE,
        "ours bfloat16",
        "torch compile float32",
        "torch eager bfloat16",
        "torch compile bfloat16",
    ]
    assert low.times_reference
    same = Case("small", 6, 1, ("bfloat16",), ways, same_dtype=True)
    assert list(same.sides()) == [
        REFERENCE, "ours bfloat16", "torch eager bfloat16", "torch compile bfloat16"
    ]  # fmt: skip
    assert not same.times_reference


def test_the_best_batch_is_that_of_most_clips_a_second():
    def case(batch, rate):
        side = {"not_measured": "why"} if rate is None else {"clips_per_second": rate}
        return {"model": "small", "heads": 6, "batch": batch, "sides": {OURS: side}}

    cases = [case(1, 2.0), case(4, 5.0), case(16, 4.0), case(64, None)]
    (best,) = best_batches(cases)
    assert best == {
        "model": "small", "heads": 6, "side": OURS, "batch": 4, "clips_per_second": 5.0
    }  # fmt: skip


def test_clips_of_a_small_batch_are_those_of_a_large_one():
    config = MODELS["tiny"]
    large = sides.draw_clips(config, 3)
    assert large.shape == (3, *config.clip_shape)
    np.testing.assert_array_equal(sides.draw_clips(config, 1), large[:1])
    assert np.ptp(large.mean(axis=(1, 2, 3, 4))) > 0.1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--heads", "7"], "--heads must divide"),
        (["--batches", "0"], "at least 1"),
        (["--pairs", "0"], "at least 1"),
        (["--models", "tall"], "invalid choice"),
    ],
)
def test_options_that_cannot_be_are_refused(arguments, complaint, capsys):
    with pytest.raises(SystemExit):
        forward.main(arguments)
    assert complaint in capsys.readouterr().err
