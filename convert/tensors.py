"""What every reader of a weight file gives back: tensors by name, read one at a time."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: shape and dtype at once, values when read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """What a file holds: its tensors, the entry they lay under, the names of what lay beside.

    `averaged` is the entry with averaged weights (EMA) that lay beside and was not asked for.
    """

    tensors: Mapping[str, Tensor]
    entry: str | None = None
    ignored_entries: tuple[str, ...] = ()
    averaged: str | None = None
