"""The figures of `benchmarks/forward.py` as tables for a terminal."""

from typing import Any

from benchmarks.machine import in_words

NOT_MEASURED = "not measured"
# Share of all cores; an idle system has 1 %.
DISTURBING = 0.05


def as_text(content: dict[str, Any]) -> str:
    """Everything that `forward.py` measured, shortest form."""
    threads = ", ".join(f"{name} {number}" for name, number in content["threads"].items())
    peaks = ", ".join(
        f"{dtype} {NOT_MEASURED if peak is None else f'{peak / 1e12:.3g}'}"
        for dtype, peak in content["matmul_peak_flops_per_second"].items()
    )
    lines = [
        in_words(content),
        f"threads: {threads}; matmul peak, TFLOP/s: {peaks}",
        f"medians of {content['pairs']}, in turns; ratios are ours over theirs, below 1: ours is "
        f"faster",
    ]
    for case in content["cases"]:
        lines += ["", *_case(case)]
    if len({case["batch"] for case in content["cases"]}) > 1:
        lines += ["", *_best(content["best"])]
    lines += [f"DISAGREES: {line}" for line in content["disagreements"]]
    return "\n".join(lines)


def _case(case: dict[str, Any]) -> list[str]:
    ours = [name for name in case["sides"] if name.startswith("ours")]
    title = f"{case['model']}, {case['heads']} heads, batch {case['batch']}"
    columns = "".join(f"{name + ' /':>16}" for name in ours)
    lines = [f"{title:<30}      ms   clips/s   of peak  ready s   rel. L2{columns}"]
    others = case["share_of_cores_used_by_others"]
    if others is not None and others > DISTURBING:
        lines.append(f"  DISTURBED: other processes used {others:.0%} of the cores; don't quote")
    for name, side in case["sides"].items():
        if "median_seconds" not in side:
            lines.append(f"  {name:<25}{NOT_MEASURED} ({side['not_measured']})")
            continue
        share, error = side["share_of_matmul_peak"], side.get("agreement", {}).get("relative_l2")
        lines.append(
            f"  {name:<25}{1e3 * side['median_seconds']:>11.1f}{side['clips_per_second']:>10.2f}"
            + (f"{'-':>10}" if share is None else f"{share:>10.0%}")
            + f"{side['seconds_to_prepare']:>9.2f}"
            + (f"{'-':>10}" if error is None else f"{error:>10.1e}")
            + "".join(f"{_ratio(case, mine, name):>16}" for mine in ours)
        )
    return lines


def _ratio(case: dict[str, Any], ours: str, theirs: str) -> str:
    ratio = case["ratios"].get(f"{ours} / {theirs}")
    return "" if ratio is None else f"{ratio:.2f}"


def _best(best: list[dict[str, Any]]) -> list[str]:
    lines = ["best batch of each side               batch   clips/s"]
    for row in best:
        name = f"{row['model']}, {row['heads']} heads, {row['side']}"
        lines.append(f"  {name:<38}{row['batch']:>4}{row['clips_per_second']:>10.2f}")
    return lines
