"""A subset of a head's classes: Kinetics-400, 600 or 700 out of VideoMAE V2's 710."""

import dataclasses
import os
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convert.errors import ConversionError
from convert.json_file import read_json_list
from convert.layouts import Layout
from convert.source import Source
from convert.weights import Tensor

HEAD = ("classifier/kernel", "classifier/bias")


def read_label_map(path: str | os.PathLike) -> tuple[int, ...]:
    """The rows to take, from a JSON list such as VideoMAE V2's `label_710to400.json`.

    Entry i is the row of the stored head that class i comes from.

    Raises:
        ConversionError: for anything but a list of different row numbers.
    """
    rows = read_json_list(Path(path))
    if not rows:
        raise ConversionError(f"{path}: takes no rows")
    for row in rows:
        if isinstance(row, bool) or not isinstance(row, int) or row < 0:
            raise ConversionError(f"{path}: row numbers count from 0, got {reprlib.repr(row)}")
    row, times = Counter(rows).most_common(1)[0]
    if times > 1:
        raise ConversionError(f"{path}: takes row {row} {times} times")
    return tuple(rows)


def take_rows(
    source: Source, layout: Layout, rows: Sequence[int], path: object
) -> tuple[Source, int]:
    """The source with only these rows of its classification head, in this order.

    Beside it the number of rows that are stored.

    Raises:
        ConversionError: if it has no head, or fewer rows; `path`, where the rows were read, is
            named.
    """
    tensors = dict(source.tensors)
    heads = sorted(name for name in tensors if _is_head(layout, name))
    if not heads:
        raise ConversionError(f"{path}: {source.path} has no classes to take rows of")
    counts = {name: tensors[name].shape[0] if tensors[name].shape else 0 for name in heads}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ConversionError(f"{source.path}: its head has no one number of classes: {said}")
    stored = counts[heads[0]]
    if max(rows) >= stored:
        raise ConversionError(
            f"{path}: takes row {max(rows)} counted from 0, but {source.path} has {stored} classes"
        )
    for name in heads:
        tensors[name] = _with_rows(tensors[name], list(rows))
    return dataclasses.replace(source, tensors=tensors), stored


def _is_head(layout: Layout, name: str) -> bool:
    found = layout.find(layout.strip(name))
    return found is not None and found[0].target in HEAD


def _with_rows(tensor: Tensor, rows: list[int]) -> Tensor:
    def read() -> np.ndarray:
        return tensor.read()[rows]

    return Tensor((len(rows), *tensor.shape[1:]), tensor.dtype, read)
