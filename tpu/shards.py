"""Which rows of a manifest are whose: every process of every host has a shard."""

import dataclasses
import math

import numpy as np

BLOCK = 1024
"""Rows that stay together: few intervals to note, and yet the same mixture in every shard."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`: every block of `BLOCK` rows whose number is index modulo count.

    Raises:
        ValueError: for an index that is not one of 0 to count - 1.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"a shard i/n has i from 0 to n - 1, as in 0/4, got {self.index}/{self.count}"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """From "i/n".

        Raises:
            ValueError: for anything else.
        """
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal()):
            raise ValueError(f"a shard is i/n, as in 0/4, got {text!r}")
        return cls(int(index), int(count))

    def of(self, index: int, count: int) -> "Shard":
        """Part `index` of `count` of this one."""
        return Shard(self.index + self.count * index, self.count * count)

    def overlaps(self, other: "Shard") -> bool:
        """Whether some row may belong to both."""
        return (self.index - other.index) % math.gcd(self.count, other.count) == 0

    def is_within(self, other: "Shard") -> bool:
        """Whether all its rows belong to the other."""
        return self.count % other.count == 0 and self.index % other.count == other.index

    def rows(self, total: int) -> np.ndarray:
        """Its rows of a manifest of `total`, ascending, int64."""
        rows = np.arange(total, dtype=np.int64)
        return rows[rows // BLOCK % self.count == self.index]
