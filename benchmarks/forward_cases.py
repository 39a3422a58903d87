"""The cases of `benchmarks/forward.py`: what runs in each, what must agree, what is worked out."""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks import machine, sides, turns
from videomae_jax.config import VARIANTS, VideoMAEConfig
from videomae_jax.flops import flops_per_clip

WAYS = ("eager", "compile")


@dataclasses.dataclass(frozen=True)
class Precision:
    """What ours of a dtype is held against, and the most relative L2 error.

    `opponents` are dtypes of theirs, the nearest to ours last.
    """

    opponents: tuple[str, ...]
    limit: float


# float32: the distance between two right programs is 1e-6, a wrong GELU's 1e-5 and more.
# bfloat16: torch's own differs from float32 by 6.5e-3.
PRECISIONS = {
    "float32": Precision(("float32",), 1e-5),
    "bfloat16": Precision(("float32", "bfloat16"), 1e-2),
}
# The best class must be the same where the reference's two best are further apart than this, in
# standard deviations of a clip's logits: some 10 times what bfloat16 changes.
CLEAR_MARGIN = 0.1
REFERENCE = "torch eager float32"

TINY = VideoMAEConfig(
    image_size=(32, 48),
    num_frames=6,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    intermediate_size=80,
    num_labels=11,
)
MODELS = {"tiny": TINY, **VARIANTS}


@dataclasses.dataclass(frozen=True)
class Case:
    """One network and batch size; everything that is asked for runs in turns in it."""

    model: str
    heads: int
    batch: int
    dtypes: tuple[str, ...]
    ways: tuple[str, ...]
    same_dtype: bool = False

    @property
    def config(self) -> VideoMAEConfig:
        """The model's sizes with this case's heads."""
        return dataclasses.replace(MODELS[self.model], num_attention_heads=self.heads)

    @property
    def opponents(self) -> tuple[str, ...]:
        """The dtypes of theirs."""
        of_each = [PRECISIONS[ours].opponents for ours in self.dtypes]
        kept = [names[-1:] if self.same_dtype else names for names in of_each]
        return tuple(dict.fromkeys(itertools.chain(*kept)))

    def sides(self) -> dict[str, tuple[str, str]]:
        """Names of the sides -> (dtype, way), the reference first; the way "ours" is ours."""
        theirs = {f"torch {w} {d}": (d, w) for d in self.opponents for w in self.ways}
        ours = {f"ours {dtype}": (dtype, "ours") for dtype in self.dtypes}
        return {REFERENCE: ("float32", "eager")} | ours | theirs

    @property
    def times_reference(self) -> bool:
        """Whether the reference takes turns, or is needed for its logits alone."""
        return "eager" in self.ways and "float32" in self.opponents


def agreement(given: np.ndarray, wanted: np.ndarray, limit: float) -> dict[str, Any]:
    """How far logits [B, labels] are from those of the reference; the worst clip counts."""
    distances = np.linalg.norm(given - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    best_two = np.sort(wanted, axis=1)[:, -2:]
    clear = best_two[:, 1] - best_two[:, 0] > CLEAR_MARGIN * wanted.std(axis=1)
    same = given.argmax(axis=1) == wanted.argmax(axis=1)
    worst = float(distances.max())
    return {
        "relative_l2": worst,
        "limit": limit,
        "clips_with_clear_top_1": int(clear.sum()),
        "same_top_1": bool(same[clear].all()),
        # Not a number is not within a limit.
        "agrees": bool(worst <= limit and same[clear].all()),
    }


def measure(
    case: Case,
    net: sides.Network,
    peaks: Mapping[str, float | None],
    *,
    pairs: int,
    step: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Every side of a case: agreement, then samples in turns, medians and ratios."""
    elsewhere = sides.torch_is_elsewhere()
    prepared, results = prepare(case, net, elsewhere, step)
    timed = {
        name: ready.side
        for name, ready in prepared.items()
        if name != REFERENCE or (case.times_reference and not elsewhere)
    }
    with machine.Neighbours() as neighbours:
        samples = turns.in_turns(timed, pairs, after_round=lambda: step("in turns"))
    work = case.batch * flops_per_clip(case.config)
    for name, seconds in samples.items():
        median, peak = statistics.median(seconds), peaks.get(case.sides()[name][0])
        results[name] |= {
            "median_seconds": median,
            "clips_per_second": case.batch / median,
            "share_of_matmul_peak": work / median / peak if peak else None,
            "seconds": seconds,
        }
    for name in set(results) - set(samples):
        results[name].setdefault("not_measured", "only its logits were needed")
    return {
        "model": case.model,
        "heads": case.heads,
        "batch": case.batch,
        "flops_per_clip": flops_per_clip(case.config),
        "share_of_cores_used_by_others": neighbours.share,
        "sides": results,
        "ratios": {
            f"{ours} / {theirs}": turns.ratio(samples[ours], samples[theirs])
            for ours in samples
            for theirs in samples
            if ours.startswith("ours") and theirs.startswith("torch")
        },
    }


def prepare(
    case: Case, net: sides.Network, elsewhere: bool, step: Callable[[str], Any]
) -> tuple[dict[str, sides.Prepared], dict[str, dict[str, Any]]]:
    """Those sides that can run, and for every side its agreement or why it is not measured."""
    clips = sides.draw_clips(case.config, case.batch)
    prepared, results = {}, {}
    for name, (dtype, way) in case.sides().items():
        step(name)
        if elsewhere and way != "ours" and name != REFERENCE:
            results[name] = {"not_measured": "torch has no such device here"}
            continue
        try:
            prepared[name] = (
                sides.prepare_ours(net, clips, dtype)
                if way == "ours"
                else sides.prepare_theirs(net, clips, dtype, way)
            )
        # torch.compile raises whatever its parts raise.
        except Exception as error:
            if way != "compile" and not sides.is_out_of_memory(error):
                raise
            lines = str(error).strip().splitlines() or [""]
            results[name] = {"not_measured": f"{type(error).__name__}: {lines[0]}"}
            continue
        results[name] = {"seconds_to_prepare": prepared[name].seconds_to_prepare}
        if REFERENCE in prepared:
            given, wanted = prepared[name].logits, prepared[REFERENCE].logits
            results[name]["agreement"] = agreement(given, wanted, PRECISIONS[dtype].limit)
    return prepared, results


def best_batches(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each network and side the batch with the most clips a second."""
    best: dict[tuple, dict[str, Any]] = {}
    for case in cases:
        for name, side in case["sides"].items():
            rate = side.get("clips_per_second")
            key = (case["model"], case["heads"], name)
            if rate is not None and rate > best.get(key, {}).get("clips_per_second", 0):
                found = {"batch": case["batch"], "clips_per_second": rate}
                best[key] = dict(zip(("model", "heads", "side"), key, strict=True)) | found
    return list(best.values())


def disagreements(cases: list[dict[str, Any]]) -> list[str]:
    """A line for each side whose logits are not transformers', or were not compared."""
    lines = []
    for case in cases:
        for name, side in case["sides"].items():
            where = f"{case['model']}, {case['heads']} heads, batch {case['batch']}, {name}"
            found = side.get("agreement")
            if found is None:
                if "median_seconds" in side:
                    lines.append(f"{where}: not compared, the reference was not measured")
            elif not found["agrees"]:
                classes = "the same" if found["same_top_1"] else "another"
                lines.append(
                    f"{where}: relative L2 {found['relative_l2']:.1e}, "
                    f"limit {found['limit']:.0e}; {classes} best class"
                )
    return lines
