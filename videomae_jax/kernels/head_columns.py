"""A head's columns in a block of many heads, without moving a number to another lane.

A register of a TPU holds 128 columns, its lanes, and blocks start at multiples of 128. Cutting head
n out, columns [nK, nK + K), would shift it to lane 0. Here it stays where it lies, and one operand
of each product is zero in the lanes of other heads: the matrix unit multiplies 128 lanes anyway.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

LANES = 128


def dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    """The product of two matrices over one axis of each, accumulated in float32."""
    axes = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


def places(array: Array, axis: int) -> Array:
    """The index of each number along `axis`."""
    return jax.lax.broadcasted_iota(jnp.int32, array.shape, axis)


def replace_after(array: Array, size: int, axis: int, fill: float) -> Array:
    """`array` with `fill` at index `size` and after it, which may have held anything."""
    if array.shape[axis] == size:
        return array
    # Only the last 128 are compared, the rest is whole registers.
    whole = size // LANES * LANES
    body = jax.lax.slice_in_dim(array, 0, whole, axis=axis)
    tail = jax.lax.slice_in_dim(array, whole, None, axis=axis)
    tail = jnp.where(places(tail, axis) < size - whole, tail, jnp.asarray(fill, array.dtype))
    return jnp.concatenate([body, tail], axis=axis) if whole else tail


class HeadColumns:
    """Head `number` of a block [1, rows, columns] of heads `head_width` wide.

    A head of up to 128 columns is read as 128 lanes: where it lies across two windows of 128, its
    second part comes from the beginning of the next window, into lanes that the first part leaves
    free. A wider head is read as all the windows that it may touch.
    """

    def __init__(self, number: int | Array, head_width: int, columns: int):
        self.head_width = head_width
        self.wraps = LANES % head_width != 0 and head_width < LANES
        self.lanes = LANES
        if head_width > LANES:
            start_lanes = 0 if head_width % LANES == 0 else LANES - 1
            self.lanes = min(columns, pl.cdiv(start_lanes + head_width, LANES) * LANES)
        start = number * head_width
        window = jax.lax.div(start, LANES) if isinstance(number, Array) else start // LANES
        self.first = self._aligned(window, columns - self.lanes)
        self.next = self._aligned(window + 1, columns - LANES)
        self.offset = start - self.first
        self.wrapped = self.offset + head_width - LANES

    def read(self, block) -> Array:
        """The head's columns [rows, lanes], those of other heads around them."""
        first = block[0, :, pl.ds(self.first, self.lanes)]
        if not self.wraps:
            return first
        following = block[0, :, pl.ds(self.next, LANES)]
        return jnp.where(places(first, 1) < self.wrapped, following, first)

    def alone(self, read: Array) -> Array:
        """What `read` returned, zero in the lanes of other heads."""
        if self.lanes == self.head_width:
            return read
        lanes = places(read, 1)
        own = self._in_first(lanes)
        if self.wraps:
            own |= lanes < self.wrapped
        return jnp.where(own, read, jnp.zeros_like(read))

    def write(self, block, result: Array) -> None:
        """Put `result` [rows, lanes] in the head's columns; those of other heads stay."""
        first = (0, slice(None), pl.ds(self.first, self.lanes))
        if self.lanes == self.head_width:
            block[first] = result
            return
        lanes = places(result, 1)
        block[first] = jnp.where(self._in_first(lanes), result, block[first])
        if self.wraps:
            following = (0, slice(None), pl.ds(self.next, LANES))
            block[following] = jnp.where(lanes < self.wrapped, result, block[following])

    def add(self, total, result: Array) -> None:
        """Add `result` [rows, lanes], zero in the lanes of other heads, to `total`'s first rows."""
        rows = slice(0, result.shape[0])
        first = (rows, pl.ds(self.first, self.lanes))
        if not self.wraps:
            total[first] += result
            return
        wrapped = places(result, 1) < self.wrapped
        total[first] += jnp.where(wrapped, 0.0, result)
        following = (rows, pl.ds(self.next, LANES))
        total[following] += jnp.where(wrapped, result, 0.0)

    def _aligned(self, window, largest: int):
        if isinstance(window, int):
            return min(window * LANES, largest)
        return pl.multiple_of(jnp.minimum(window * LANES, largest), LANES)

    def _in_first(self, lanes: Array) -> Array:
        return (lanes >= self.offset) & (lanes < self.offset + self.head_width)
