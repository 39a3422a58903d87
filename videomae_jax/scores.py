"""How right were the answers? Accuracy and its interval, average precision, errors: pure NumPy."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

LEVEL = 0.95
Z = 1.959963984540054
"""The standard normal distribution has `LEVEL` of itself between -Z and Z."""


def single_label(
    probabilities: Float[np.ndarray, "N labels"], targets: Int[np.ndarray, "N"]
) -> dict[str, Any]:
    """Top-1, top-5, their intervals, accuracy of each class, and who is taken for whom.

    Shares are from 0 to 1. `per_class` has (right, count, accuracy) in the order of the classes,
    accuracy None where count is 0; `confusion[i][j]` counts videos of class i that were taken for
    class j. Among equals the lower class number is ranked higher, as `Labels.rank` does.
    """
    classes = probabilities.shape[1]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    hits = order == targets[:, None]
    right1, right5 = int(hits[:, :1].sum()), int(hits[:, :5].sum())
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (targets, order[:, 0]), 1)
    counts = confusion.sum(axis=1).tolist()
    per_class = [
        {"right": right, "count": count, "accuracy": right / count if count else None}
        for right, count in zip(confusion.diagonal().tolist(), counts, strict=True)
    ]
    return {
        "top1": right1 / len(targets),
        "top5": right5 / len(targets),
        "interval": {
            "level": LEVEL,
            "top1": wilson(right1, len(targets)),
            "top5": wilson(right5, len(targets)),
        },
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's interval of a share, with a confidence of `LEVEL`.

    Unlike the normal approximation it stays within 0 and 1 and means something at the ends.
    """
    share, spread = right / count, Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def multi_label(
    probabilities: Float[np.ndarray, "N labels"], targets: Float[np.ndarray, "N labels"]
) -> dict[str, Any]:
    """Mean average precision, over the classes that some video has; and each class's own.

    `average_precision` is None for a class that no video has.
    """
    present = targets > 0.5
    per_class: list[dict[str, Any]] = [
        {
            "count": int(present[:, number].sum()),
            "average_precision": average_precision(probabilities[:, number], present[:, number]),
        }
        for number in range(targets.shape[1])
    ]
    known = [each["average_precision"] for each in per_class if each["count"]]
    return {"map": float(np.mean(known)) if known else None, "per_class": per_class}


def average_precision(scores: Float[np.ndarray, "N"], present: np.ndarray) -> float | None:
    """The sum of precision times the gain in recall, from the highest score to the lowest.

    Videos of equal scores count at once, and no interpolation is done, as in scikit-learn. None
    where nothing is present.
    """
    total = int(present.sum())
    if not total:
        return None
    order = np.argsort(-scores, kind="stable")
    # The last of each run of equal scores.
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.cumsum(present[order])[ends]
    gains = np.diff(found, prepend=0) / total
    return float(np.sum(gains * found / (ends + 1)))


def regression(
    outputs: Float[np.ndarray, "N labels"], targets: Float[np.ndarray, "N labels"]
) -> dict[str, Any]:
    """Mean squared and absolute error, and R2, each the mean over outputs; and each output's own.

    R2 is 1 minus the squared error over that of the mean; None where all targets are equal.
    """
    error = outputs - targets
    around = ((targets - targets.mean(axis=0)) ** 2).sum(axis=0)
    per_output: list[dict[str, Any]] = [
        {
            "mse": float((error[:, number] ** 2).mean()),
            "mae": float(np.abs(error[:, number]).mean()),
            "r2": float(1 - (error[:, number] ** 2).sum() / around[number])
            if around[number]
            else None,
        }
        for number in range(targets.shape[1])
    ]
    known = [each["r2"] for each in per_output if each["r2"] is not None]
    return {
        "mse": float((error**2).mean()),
        "mae": float(np.abs(error).mean()),
        "r2": float(np.mean(known)) if known else None,
        "per_output": per_output,
    }
