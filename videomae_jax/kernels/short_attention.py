"""Attention of short sequences on TPU, straight from the packed projection.

All keys and values of a head fit in a core's fast memory (VMEM), so there is no online softmax, and
neither scores nor weights ever reach the main memory.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Float

from videomae_jax.kernels.batch_parallel import batch_parallel
from videomae_jax.kernels.head_columns import HeadColumns, dot, places, replace_after
from videomae_jax.kernels.short_attention_plan import (
    ROW_MULTIPLE,
    VMEM_LIMIT,
    Plan,
    plan_backward,
    plan_forward,
)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _attention(qkv, num_heads: int, scale: float, rows: int | None, interpret: Any):
    call = functools.partial(_forward, num_heads, scale, rows, interpret)
    return batch_parallel(call)(qkv)


def _attention_forward(qkv, num_heads, scale, rows, interpret):
    return _attention(qkv, num_heads, scale, rows, interpret), qkv


def _attention_backward(num_heads, scale, rows, interpret, qkv, gradient):
    call = functools.partial(_backward, num_heads, scale, rows, interpret)
    return (batch_parallel(call)(qkv, gradient.astype(qkv.dtype)),)


_attention.defvjp(_attention_forward, _attention_backward)


def short_attention(
    qkv: Float[Array, "B L qkv"],
    num_heads: int,
    scale: float,
    *,
    rows: int | None = None,
    interpret: Any = False,
) -> Float[Array, "B L D"]:
    """softmax(scale Q K') V of packed projections, float32 or bfloat16, as a Pallas TPU kernel.

    `qkv` holds D columns of queries, then keys, then values; head n owns columns [nK, nK + K) of
    each. Scores, softmax and sums are float32; the products take their operands in qkv's dtype.
    Nothing is copied where D is a multiple of 128; otherwise each part is padded to one. Keeps a
    batch that is sharded over chips where it is. The gradient is a kernel, too, which keeps nothing
    but `qkv`. `rows` queries, a multiple of 16, share a block: by default as many as fit.
    `interpret` runs the kernel without a TPU, for tests.

    Raises:
        ValueError: if L is so large that a head's keys and values don't fit.
    """
    if qkv.shape[1] == 1:
        # The weight of the only token is 1 (and Mosaic has no blocks of one row of 16-bit numbers).
        return qkv[..., qkv.shape[-1] // 3 * 2 :]
    return _attention(qkv, num_heads, scale, rows, interpret)


def _pad(array: Array, parts: int, plan: Plan) -> Array:
    """`array` [B, L, parts D] with the widths that the plan asks for."""
    batch, length, width = array.shape
    per_head = width // (parts * plan.num_heads)
    if width == parts * plan.width:
        return array
    array = array.reshape(batch, length, parts, plan.num_heads, per_head)
    array = jnp.pad(array, (*[(0, 0)] * 4, (0, plan.head_width - per_head)))
    array = array.reshape(batch, length, parts, plan.num_heads * plan.head_width)
    array = jnp.pad(array, (*[(0, 0)] * 3, (0, plan.width - array.shape[-1])))
    return array.reshape(batch, length, parts * plan.width)


def _cut(array: Array, parts: int, plan: Plan, head_width: int) -> Array:
    """The inverse of `_pad`."""
    batch, length, _ = array.shape
    if head_width * plan.num_heads == plan.width:
        return array
    array = array.reshape(batch, length, parts, plan.width)
    array = array[..., : plan.num_heads * plan.head_width]
    array = array.reshape(batch, length, parts, plan.num_heads, plan.head_width)
    return array[..., :head_width].reshape(batch, length, parts * plan.num_heads * head_width)


def _forward(num_heads: int, scale: float, rows, interpret, qkv: Array) -> Array:
    batch, length, packed = qkv.shape
    width, itemsize = packed // 3, qkv.dtype.itemsize
    plan = plan_forward(length, num_heads, width // num_heads, itemsize, rows)
    packed_array = _pad(qkv, 3, plan)
    row_block = pl.BlockSpec((1, plan.rows, plan.columns), lambda b, g, i: (b, i, g))
    mixed = pl.pallas_call(
        functools.partial(_forward_kernel, plan, scale),
        grid=(batch, plan.groups, plan.row_blocks),
        in_specs=[row_block, _key_block(plan, 1), _key_block(plan, 2)],
        out_specs=row_block,
        out_shape=_like(qkv, (batch, length, plan.width)),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * batch * length**2 * width,
            transcendentals=batch * num_heads * length**2,
            bytes_accessed=4 * batch * length * plan.width * itemsize,
        ),
        interpret=interpret,
        name="short_attention",
    )(packed_array, packed_array, packed_array)
    return _cut(mixed, 1, plan, width // num_heads)


def _like(array: Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """A result of `array`'s dtype that varies over the same axes of a mesh inside `shard_map`."""
    varying = jax.typeof(array).manual_axis_type
    return jax.ShapeDtypeStruct(shape, array.dtype, manual_axis_type=varying)


def _key_block(plan: Plan, part: int) -> pl.BlockSpec:
    return pl.BlockSpec(
        (1, plan.keys, plan.columns),
        lambda b, g, i: (b, 0, part * plan.groups + g),
        pipeline_mode=None if plan.key_buffers == 2 else pl.Buffered(plan.key_buffers),
    )


def _weights(plan: Plan, scale: float, query: Array, key: Array) -> tuple[Array, Array]:
    """exp(score - the row's largest) [rows, keys] and its sums [rows, 1]."""
    scores = replace_after(dot(query, key, 1, 1) * scale, plan.length, 1, -math.inf)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return weights, weights.sum(axis=1, keepdims=True)


def _forward_kernel(plan: Plan, scale: float, q_ref, k_ref, v_ref, o_ref) -> None:
    group = pl.program_id(1)

    def one_head(head: HeadColumns) -> None:
        weights, sums = _weights(plan, scale, head.alone(head.read(q_ref)), head.read(k_ref))
        value = replace_after(head.read(v_ref), plan.length, 0, 0.0)
        mixed = dot(weights.astype(value.dtype), value, 1, 0) / sums
        head.write(o_ref, mixed.astype(o_ref.dtype))

    plan.for_each_head(group, one_head)


def _backward(num_heads: int, scale: float, rows, interpret, qkv: Array, gradient: Array) -> Array:
    batch, length, packed = qkv.shape
    width, itemsize = packed // 3, qkv.dtype.itemsize
    plan = plan_backward(length, num_heads, width // num_heads, itemsize, rows)
    packed_array = _pad(qkv, 3, plan)
    blocks = plan.row_blocks
    block = (1, plan.rows, plan.columns)
    # While the sums over all rows are written, the last block of rows stays where it is.
    row_block = pl.BlockSpec(block, lambda b, g, i: (b, jnp.minimum(i, blocks - 1), g))
    totals = pltpu.VMEM((max(plan.keys, blocks * plan.rows), plan.columns), jnp.float32)
    of_packed = pl.pallas_call(
        functools.partial(_backward_kernel, plan, scale),
        grid=(batch, plan.groups, 3 * blocks),
        in_specs=[row_block, _key_block(plan, 1), _key_block(plan, 2), row_block],
        out_specs=pl.BlockSpec(
            block,
            lambda b, g, i: (
                b,
                jax.lax.rem(i, blocks),
                jax.lax.div(i, blocks) * plan.groups + g,
            ),
        ),
        out_shape=_like(qkv, (batch, length, 3 * plan.width)),
        scratch_shapes=[totals, totals],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=10 * batch * length**2 * width,
            transcendentals=batch * num_heads * length**2,
            bytes_accessed=7 * batch * length * plan.width * itemsize,
        ),
        interpret=interpret,
        name="short_attention_gradient",
    )(packed_array, packed_array, packed_array, _pad(gradient, 1, plan))
    return _cut(of_packed, 3, plan, width // num_heads)


def _backward_kernel(
    plan: Plan, scale: float, q_ref, k_ref, v_ref, g_ref, o_ref, k_total, v_total
) -> None:
    """Gradients of a block's queries, then of all its keys, then of all its values.

    The last axis of the grid goes through the blocks of rows three times, as the result has it: the
    first time everything is computed, the other two what was summed up is written.
    """
    group, step = pl.program_id(1), pl.program_id(2)
    block = jax.lax.rem(step, plan.row_blocks)
    here = pl.ds(pl.multiple_of(block * plan.rows, ROW_MULTIPLE), plan.rows)

    @pl.when(step == 0)
    def begin() -> None:
        k_total[...] = jnp.zeros_like(k_total)
        v_total[...] = jnp.zeros_like(v_total)

    def real_rows(array: Array) -> Array:
        # The last block may reach past the last row, where anything may stand.
        if plan.length % plan.rows == 0:
            return array
        real = places(array, 0) < plan.length - block * plan.rows
        return jnp.where(real, array, jnp.zeros_like(array))

    def one_head(head: HeadColumns) -> None:
        query = real_rows(head.alone(head.read(q_ref)))
        key = replace_after(head.read(k_ref), plan.length, 0, 0.0)
        value = replace_after(head.read(v_ref), plan.length, 0, 0.0)
        weights, sums = _weights(plan, scale, query, key)
        # The weights lack the division by their sums: the gradient has it instead, being small.
        gradient = real_rows(head.alone(head.read(g_ref))).astype(jnp.float32) / sums
        gradient = gradient.astype(value.dtype)
        head.add(v_total, dot(weights.astype(value.dtype), gradient, 0, 0))
        of_weights = dot(gradient, value, 1, 1)
        mean = (weights * of_weights).sum(axis=1, keepdims=True) / sums
        of_scores = (weights * (of_weights - mean)).astype(value.dtype)
        head.add(k_total, dot(of_scores, query, 0, 0) * scale)
        head.write(o_ref, (dot(of_scores, key, 1, 0) * scale).astype(o_ref.dtype))

    @pl.when(step < plan.row_blocks)
    def compute() -> None:
        plan.for_each_head(group, one_head)

    @pl.when(jax.lax.div(step, plan.row_blocks) == 1)
    def write_keys() -> None:
        o_ref[0] = k_total[here].astype(o_ref.dtype)

    @pl.when(jax.lax.div(step, plan.row_blocks) == 2)
    def write_values() -> None:
        o_ref[0] = v_total[here].astype(o_ref.dtype)
