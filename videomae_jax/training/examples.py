"""Which videos are trained on, and what are they labelled as? A source -> `Examples`."""

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videomae_jax.training.listing import SPLITS, ExamplesError, Rows, read_rows
from videomae_jax.training.packed import Packed

KINDS = ("single", "multi", "regression", "none")
_WHOLE = re.compile(r"-?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Examples:
    """Videos with what is to be learned of them.

    labels: of kind "single" int32 [n], class numbers; of "multi" float32 [n, K], 1 for each class
        that a video has; of "regression" float32 [n, K]; None for "none".
    classes: names, in the order of the numbers; None where the labels are numbers.
    num_labels: K, over all splits of the source; 0 for "none".
    packed: the frames, of a folder that `videomae pack` wrote; its record i belongs to example i.
    """

    paths: list[str]
    labels: np.ndarray | None
    classes: tuple[str, ...] | None
    num_labels: int
    packed: Packed | None = None

    def __len__(self) -> int:
        return len(self.paths)


def read_examples(
    source: str | os.PathLike | Rows,
    *,
    split: str | None = None,
    kind: str = "single",
    classes: Sequence[str] | None = None,
    root: str | None = None,
) -> Examples:
    """The examples of a source (see `videomae_jax.training.listing`), in its order.

    split: "train", "val", "test" (or another name in a column `split`); None takes all. A source
        without splits is all "train".
    kind: "single" has one class a video, a number or a name. "multi" has any number of them, in a
        list or by `;` ("of numbers" also by spaces or commas); "regression" one or more numbers,
        as many for each video. "none" leaves out what labels there are.
    classes: the names of the classes in their order, as a model has them; by default the names in
        all splits of the source, sorted, so that all splits number them alike.
    root: what relative paths in a file are meant from, see `read_rows`.

    Raises:
        ExamplesError: (a ValueError) one line that names the file, the line or row, and the mend.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    rows = source if isinstance(source, Rows) else read_rows(source, root=root)
    chosen = _chosen(rows, split)
    named = None if classes is None else tuple(classes)
    if kind == "none":
        labels, num_labels, named = None, 0, None
    else:
        values = _labels(rows)
        # Of what is not asked for, a test set say, some may have no labels.
        some = sorted({*chosen.tolist(), *(row for row, each in enumerate(values) if _says(each))})
        labels, num_labels, named = _MAKE[kind](
            [values[row] for row in some], lambda row: rows.where(some[row]), named
        )
        labels = labels[np.searchsorted(some, chosen)]
    whole = len(chosen) == len(rows.paths)
    packed = rows.packed if whole or rows.packed is None else rows.packed.take(chosen)
    paths = rows.paths if whole else [rows.paths[row] for row in chosen]
    return Examples(paths, labels, named, num_labels, packed)


def read_sets(
    source: str | os.PathLike,
    other: str | os.PathLike | None = None,
    *,
    kind: str = "single",
    parts: Sequence[str] = ("val",),
) -> tuple[Examples, Examples | None]:
    """The examples to learn from, and those to count on, whose classes have the same numbers.

    The second are those of `other`: its split val, else test, else all of it. Without it they are
    the first of `parts` that the source has, None where it has none.

    Raises:
        ExamplesError: as `read_examples`.
    """
    rows = read_rows(source)
    train = read_examples(rows, split="train", kind=kind)
    others = rows if other is None else read_rows(other)
    there = splits_of(others)
    wanted = parts if other is None else ("val", "test")
    split = next((name for name in wanted if name in there), None)
    if other is None and split is None:
        return train, None
    return train, read_examples(others, split=split, kind=kind, classes=train.classes)


def check_alike(train: Examples, validation: Examples, *, num_labels: int) -> None:
    """Refuse examples to count on whose labels can't mean what those to learn from mean.

    num_labels: of the model.

    Raises:
        ExamplesError: with what both have.
    """
    if validation.labels is None:
        raise ExamplesError("the validation set has no labels")
    if validation.classes is not None and validation.classes != train.classes:
        raise ExamplesError("the classes of the two sets have different names")
    width, highest = validation.labels.shape[1:], validation.labels.max(initial=-1)
    if width and width != (num_labels,):
        raise ExamplesError(
            f"the validation set has {width[0]} labels a video, the training set has {num_labels}"
        )
    if not width and highest >= num_labels:
        raise ExamplesError(
            f"the validation set has class {highest}, the training set has {num_labels}"
        )


def splits_of(source: str | os.PathLike | Rows) -> tuple[str, ...]:
    """The splits that a source has: "train", "val", "test" first; none if it says nothing of them.

    Raises:
        ExamplesError: as `read_examples`.
    """
    rows = source if isinstance(source, Rows) else read_rows(source)
    order = list(dict.fromkeys(SPLITS.values()))
    there = set(rows.splits or ())
    return (*(name for name in order if name in there), *sorted(there - set(order)))


def rows_of_split(rows: Rows, split: str | None) -> Rows:
    """The rows of a split, as `read_examples` takes it.

    Raises:
        ExamplesError: if there are none.
    """
    chosen = _chosen(rows, split).tolist()

    def some(values: list[Any] | None) -> Any:
        return None if values is None else [values[row] for row in chosen]

    return dataclasses.replace(
        rows,
        paths=some(rows.paths),
        labels=some(rows.labels),
        splits=some(rows.splits),
        where=lambda row: rows.where(chosen[row]),
        packed=None if rows.packed is None else rows.packed.take(np.array(chosen)),
    )


def _chosen(rows: Rows, split: str | None) -> np.ndarray:
    """The rows of a split."""
    if split is not None:
        split = SPLITS.get(split.lower(), split)
    if split is None or (rows.splits is None and split == "train"):
        return np.arange(len(rows.paths))
    chosen = np.flatnonzero([each == split for each in rows.splits or ()])
    if not len(chosen):
        there = ", ".join(splits_of(rows)) or "none: all of it is train"
        raise ExamplesError(
            f"{rows.source}: has no split {split!r}; there are {there}. A column `split`, or "
            f"folders or lists called train, val and test say what belongs to which"
        )
    return chosen


def _labels(rows: Rows) -> list[Any]:
    if rows.labels is None:
        raise ExamplesError(
            f"{rows.source}: has no labels; write one behind each path, in a column `label`, or "
            f"make a folder per class"
        )
    return rows.labels


Made = tuple[np.ndarray, int, tuple[str, ...] | None]
Where = Callable[[int], str]


def _single(values: list[Any], where: Where, classes: tuple[str, ...] | None) -> Made:
    """Class numbers, how many classes there are, and their names if they have any."""
    for row, value in enumerate(values):
        if not _says(value):
            raise ExamplesError(f"{where(row)}: has no label; write one, or leave the video out")
        if isinstance(value, list):
            raise ExamplesError(f"{where(row)}: has several labels {value}; say kind multi")
    numbers, count, names = _numbered([[_last(value)] for value in values], where, classes)
    return np.array([found[0] for found in numbers], np.int32), count, names


def _multi(values: list[Any], where: Where, classes: tuple[str, ...] | None) -> Made:
    """A row of zeros and ones a video, how many classes there are, and their names."""
    numbers, count, names = _numbered([_several(value) for value in values], where, classes)
    labels = np.zeros((len(values), count), np.float32)
    for row, found in enumerate(numbers):
        labels[row, found] = 1
    return labels, count, names


def _regression(values: list[Any], where: Where, classes: tuple[str, ...] | None) -> Made:
    """A row of numbers a video, and how many there are in it."""
    rows: list[list[float]] = []
    for row, value in enumerate(values):
        try:
            found = [float(each) for each in _several(value)]
        except ValueError as error:
            raise ExamplesError(
                f"{where(row)}: label {value!r} is no number; regression needs numbers"
            ) from error
        if not found or not np.isfinite(found).all():
            raise ExamplesError(f"{where(row)}: label must be finite numbers, got {value!r}")
        if rows and len(found) != len(rows[0]):
            raise ExamplesError(
                f"{where(row)}: has {len(found)} numbers, the first has {len(rows[0])}; give as "
                f"many for each"
            )
        rows.append(found)
    return np.array(rows, np.float32), len(rows[0]), classes


_MAKE = {"single": _single, "multi": _multi, "regression": _regression}


def _numbered(
    values: list[list[Any]], where: Where, classes: tuple[str, ...] | None
) -> tuple[list[list[int]], int, tuple[str, ...] | None]:
    """The numbers of the classes of each row; all of them are numbers, or all are names."""
    for row, found in enumerate(values):
        part = next((each for each in found if _is_part(each)), None)
        if part is not None:
            raise ExamplesError(
                f"{where(row)}: label {part} is no class, which are whole numbers or names; say "
                f"kind regression if it is to be predicted"
            )
    kinds = {_is_number(each) for found in values for each in found}
    if kinds == {True, False}:
        few = sum(_is_number(each) for found in values for each in found)
        odd = few * 2 < sum(map(len, values))
        row, value = next(
            (row, each) for row, found in enumerate(values) for each in found
            if _is_number(each) is odd
        )  # fmt: skip
        what = "a number, most others are names" if odd else "a name, most others are numbers"
        raise ExamplesError(f"{where(row)}: label {value!r} is {what}; write all in one way")
    if False in kinds:
        return _by_name(values, where, classes)
    numbers = [[int(each) for each in found] for found in values]
    count = len(classes) if classes else max(max(found, default=-1) for found in numbers) + 1
    for row, found in enumerate(numbers):
        if found and not 0 <= min(found) <= max(found) < count:
            allowed = f"0 to {count - 1}" if classes else "0 or more"
            raise ExamplesError(f"{where(row)}: class numbers are {allowed}, got {found}")
    return numbers, count, classes


def _by_name(
    values: list[list[Any]], where: Where, classes: tuple[str, ...] | None
) -> tuple[list[list[int]], int, tuple[str, ...]]:
    names = classes or tuple(sorted({str(each) for found in values for each in found}))
    number = {name: index for index, name in enumerate(names)}
    for row, found in enumerate(values):
        unknown = next((each for each in found if str(each) not in number), None)
        if unknown is not None:
            some = ", ".join(names[:5]) + ", ..." * (len(names) > 5)
            raise ExamplesError(f"{where(row)}: no class {unknown!r} among {len(names)} ({some})")
    return [[number[str(each)] for each in found] for found in values], len(names), names


def _says(value: Any) -> bool:
    """Whether anything is written as a label."""
    return value is not None and bool(str(value).strip())


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return _WHOLE.fullmatch(value) is not None
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def _is_part(value: Any) -> bool:
    return isinstance(value, float) and not value.is_integer()


def _last(value: Any) -> Any:
    """A label as it is written; of several numbers in a line the last."""
    if not isinstance(value, str):
        return value
    parts = re.split(r"[\s,]+", value.strip())
    return parts[-1] if all(map(_WHOLE.fullmatch, parts)) else value.strip()


def _several(value: Any) -> list[Any]:
    """What a label lists: a list's values, or what `;` parts, or else numbers in a line."""
    if value is None or isinstance(value, list) or value == "":
        return list(value or ())
    if not isinstance(value, str):
        return [value]
    if ";" in value:
        return [part.strip() for part in value.split(";") if part.strip()]
    parts = re.split(r"[\s,]+", value.strip())
    numbers = all(re.fullmatch(r"[-+.0-9eE]+", part) for part in parts)
    return parts if numbers else [value.strip()]
