"""How one call of the short-sequence kernels is cut into blocks that fit in a core's memory."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable

import jax
from jax import Array
from jax.experimental import pallas as pl

from videomae_jax.kernels.head_columns import LANES, HeadColumns

# A TPU v4 core has 16 MiB, the others more; the compiler wants some of it for itself.
VMEM_LIMIT = 16 * 2**20
VMEM_BUDGET = 15 * 2**20
# A block of rows starts at a multiple of the rows in a register of 16-bit numbers.
ROW_MULTIPLE = 16
MOST_ROWS = 784
FEWEST_ROWS = 128


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one call is cut into blocks: `columns` columns and `rows` rows of queries each."""

    num_heads: int
    length: int
    # Of a head and of a part of the array that the kernel is given, after padding.
    head_width: int
    width: int
    columns: int
    rows: int
    key_buffers: int

    @property
    def keys(self) -> int:
        return pl.cdiv(self.length, LANES) * LANES

    @property
    def row_blocks(self) -> int:
        return pl.cdiv(self.length, self.rows)

    @property
    def groups(self) -> int:
        return self.width // self.columns

    @property
    def heads(self) -> int:
        """Heads in a block of columns."""
        return min(self.columns // self.head_width, self.num_heads)

    @property
    def heads_at_once(self) -> int:
        """Two heads are unrolled: the products of one run beside the softmax of the other."""
        return self.heads if self.heads <= 2 else 1

    def for_each_head(self, group: Array, step: Callable[[HeadColumns], None]) -> None:
        """Run `step` for each head of the block of columns number `group`."""
        count = self.heads

        def one_head(number):
            head = HeadColumns(number, self.head_width, self.columns)
            if self.num_heads % count:
                exists = group * count + number < self.num_heads
                pl.when(exists)(functools.partial(step, head))
            else:
                step(head)

        if count == self.heads_at_once:
            for number in range(count):
                one_head(number)
        else:
            jax.lax.fori_loop(0, count, lambda number, _: one_head(number), None)


def plan_forward(
    length: int, num_heads: int, head_width: int, itemsize: int, rows: int | None
) -> Plan:
    """Blocks for the forward kernel that fit in VMEM."""

    def bytes_needed(plan: Plan) -> int:
        keys = 2 * plan.key_buffers * plan.keys * plan.columns * itemsize
        queries = 4 * plan.rows * plan.columns * itemsize
        return keys + queries + 4 * plan.heads_at_once * plan.rows * plan.keys

    return _first_that_fits(bytes_needed, length, num_heads, head_width, rows)


def plan_backward(
    length: int, num_heads: int, head_width: int, itemsize: int, rows: int | None
) -> Plan:
    """Blocks for the backward kernel that fit in VMEM."""

    def bytes_needed(plan: Plan) -> int:
        keys = 2 * plan.key_buffers * plan.keys * plan.columns * itemsize
        queries = 6 * plan.rows * plan.columns * itemsize
        totals = 2 * max(plan.keys, plan.row_blocks * plan.rows) * plan.columns * 4
        added = 4 * plan.keys * max(LANES, plan.head_width)
        return keys + queries + totals + added + 16 * plan.rows * plan.keys

    return _first_that_fits(bytes_needed, length, num_heads, head_width, rows)


def _first_that_fits(bytes_needed, length: int, num_heads: int, head_width: int, rows) -> Plan:
    """The first of all plans, best first, that fits."""
    choices = itertools.product((FEWEST_ROWS, ROW_MULTIPLE), _widths(num_heads, head_width), (2, 1))
    for fewest, (wide, width, columns), key_buffers in choices:
        for count in _row_counts(length, rows, min(fewest, length)):
            plan = Plan(num_heads, length, wide, width, columns, count, key_buffers)
            if bytes_needed(plan) <= VMEM_BUDGET:
                return plan
    raise ValueError(
        f"short_attention has no room for {length} tokens with {num_heads} heads of {head_width}: "
        f"use another backend"
    )


def _widths(num_heads: int, head_width: int):
    """(head width, width of a part, columns of a block): as it is, then with padded heads."""
    # The smallest power of two, or multiple of 128, that holds a head.
    padded = 1 << (head_width - 1).bit_length()
    if head_width > LANES:
        padded = pl.cdiv(head_width, LANES) * LANES
    for wide in dict.fromkeys((head_width, padded)):
        columns = min(math.lcm(wide, LANES), pl.cdiv(num_heads * wide, LANES) * LANES)
        yield wide, pl.cdiv(num_heads * wide, columns) * columns, columns


def _row_counts(length: int, rows: int | None, fewest: int):
    if rows is not None:
        yield rows
        return
    for blocks in range(pl.cdiv(length, MOST_ROWS), length + 1):
        count = pl.cdiv(pl.cdiv(length, blocks), ROW_MULTIPLE) * ROW_MULTIPLE
        if blocks > 1 and count < fewest:
            return
        yield count
        if count <= fewest:
            return
