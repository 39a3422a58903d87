"""Attention for CPUs: one head and one block of query rows at a time.

XLA's CPU backend multiplies two matrices some five times faster than a batch of them, and the
scores of one block stay in the cache.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32

from videomae_jax.kernels.batch_parallel import batch_parallel
from videomae_jax.kernels.kept import keep

# Most rows of scores at once: measured best among 196, 392, 784 and 1568, at 1568 tokens.
FORWARD_ROWS = 784
BACKWARD_ROWS = 392


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def blocked_attention(
    qkv: Float[Array, "B L qkv"], num_heads: int, scale: float
) -> Float[Array, "B L D"]:
    """softmax(scale Q K') V of each head, from packed projections; see `attention.attend`."""
    return _forward(qkv, num_heads, scale)[0]


def _forward(qkv: Array, num_heads: int, scale: float) -> tuple[Array, tuple[Array, Array, Array]]:
    forward = functools.partial(_forward_clips, num_heads=num_heads, scale=scale)
    mixed, log_sums = keep(batch_parallel(forward)(qkv))
    return mixed, (qkv, mixed, log_sums)


def _backward(num_heads: int, scale: float, kept: tuple, gradient: Array) -> tuple[Array]:
    backward = functools.partial(_backward_clips, num_heads=num_heads, scale=scale)
    return (batch_parallel(backward)(*kept, gradient),)


blocked_attention.defvjp(_forward, _backward)


def _forward_clips(
    qkv: Float[Array, "B L qkv"], *, num_heads: int, scale: float
) -> tuple[Float[Array, "B L D"], Float32[Array, "B N L"]]:
    """What is attended to, and the logarithm of each row's sum of exp(score)."""
    batch, tokens, _ = qkv.shape
    rows, blocks = _blocks(tokens, FORWARD_ROWS)

    def one_head(packed: Array) -> tuple[Array, Array]:
        query, key, value = _from_bits(packed, qkv.dtype)
        keys = key.T

        def one_block(queries: Array) -> tuple[Array, Array]:
            queries = _from_bits(queries, qkv.dtype)
            mixed, log_sums = _attend_rows(queries, keys, value, scale)
            return _to_bits(mixed), log_sums

        mixed, log_sums = lax.map(one_block, _cut(_to_bits(query), rows, blocks))
        return mixed.reshape(rows * blocks, -1)[:tokens], log_sums.reshape(-1)[:tokens]

    mixed, log_sums = lax.map(one_head, _heads_first(_to_bits(qkv), num_heads, parts=3))
    mixed = _heads_last(mixed[:, None], batch, num_heads)
    return _from_bits(mixed, qkv.dtype), log_sums.reshape(batch, num_heads, tokens)


def _attend_rows(
    queries: Float[Array, "rows K"],
    keys: Float[Array, "K L"],
    values: Float[Array, "L K"],
    scale: float,
) -> tuple[Float[Array, "rows K"], Float32[Array, "rows"]]:
    scores = _dot(queries, keys)
    if values.dtype == jnp.bfloat16:
        # Without it exp goes where the product is, and rounding becomes a pass of its own.
        scores = lax.optimization_barrier(scores)
    largest = scores.max(-1, keepdims=True)
    weights = jnp.exp((scores - largest) * scale).astype(values.dtype)
    # Of the rounded weights, so that they sum to 1.
    sums = weights.astype(jnp.float32).sum(-1, keepdims=True)
    mixed = (_dot(weights, values) / sums).astype(values.dtype)
    return mixed, (largest * scale + jnp.log(sums))[:, 0]


def _backward_clips(
    qkv: Float[Array, "B L qkv"],
    mixed: Float[Array, "B L D"],
    log_sums: Float32[Array, "B N L"],
    gradient: Float[Array, "B L D"],
    *,
    num_heads: int,
    scale: float,
) -> Float[Array, "B L qkv"]:
    """The gradient of `qkv`: weights are computed again, for a block of keys at a time."""
    batch, tokens, _ = qkv.shape
    rows, blocks = _blocks(tokens, BACKWARD_ROWS)

    def one_head(head: tuple[Array, ...]) -> Array:
        query, key, value, mixed, gradient = (_from_bits(part, qkv.dtype) for part in head[:5])
        slopes = (mixed.astype(jnp.float32) * gradient).sum(-1)
        queries, gradients = query.T, gradient.T

        def one_block(of_query: Array, block: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            keys, turned, values = (_from_bits(part, qkv.dtype) for part in block)
            weights = jnp.exp(_dot(keys, queries) * scale - head[5])
            of_scores = weights * (_dot(values, gradients) - slopes) * scale
            of_scores = of_scores.astype(qkv.dtype)
            of_keys = _dot(of_scores, query)
            of_values = _dot(weights.astype(qkv.dtype), gradient)
            # A product over the first axis of both sides runs three times slower: this one, turned.
            return of_query + _dot(turned, of_scores), jnp.stack([of_keys, of_values])

        start = jnp.zeros(queries.shape, jnp.float32)
        keys, values = (_cut(_to_bits(part), rows, blocks) for part in (key, value))
        # XLA would take either turn into the product, which then is over first axes again.
        turned = lax.optimization_barrier(keys.swapaxes(1, 2))
        of_query, others = lax.scan(one_block, start, (keys, turned, values))
        of_query = lax.optimization_barrier(of_query)
        others = jnp.moveaxis(others, 1, 0).reshape(2, rows * blocks, -1)[:, :tokens]
        return _to_bits(jnp.concatenate([of_query.T[None], others]).astype(qkv.dtype))

    parts = [
        part
        for array, count in ((qkv, 3), (mixed, 1), (gradient, 1))
        for part in jnp.unstack(_heads_first(_to_bits(array), num_heads, parts=count), axis=1)
    ]
    heads = lax.map(one_head, (*parts, log_sums.reshape(batch * num_heads, tokens)))
    return _from_bits(_heads_last(heads, batch, num_heads), qkv.dtype)


def _heads_first(packed: Array, num_heads: int, *, parts: int) -> Array:
    """[B, L, parts * D] -> [B * N, parts, L, K]."""
    batch, tokens, width = packed.shape
    head_width = width // (parts * num_heads)
    cut = packed.reshape(batch, tokens, parts, num_heads, head_width).transpose(0, 3, 2, 1, 4)
    return cut.reshape(batch * num_heads, parts, tokens, head_width)


def _heads_last(heads: Array, batch: int, num_heads: int) -> Array:
    """[B * N, parts, L, K] -> [B, L, parts * D]."""
    _, parts, tokens, head_width = heads.shape
    cut = heads.reshape(batch, num_heads, parts, tokens, head_width).transpose(0, 3, 2, 1, 4)
    return cut.reshape(batch, tokens, parts * num_heads * head_width)


def _blocks(tokens: int, most: int) -> tuple[int, int]:
    """The rows of a block, and the number of blocks of equal size."""
    blocks = math.ceil(tokens / most)
    return math.ceil(tokens / blocks), blocks


def _cut(array: Array, rows: int, blocks: int) -> Array:
    """[L, K] -> [blocks, rows, K], the last one filled up with zeros."""
    padded = jnp.pad(array, ((0, rows * blocks - array.shape[0]), (0, 0)))
    return padded.reshape(blocks, rows, -1)


def _to_bits(array: Array) -> Array:
    """bfloat16 as integers: XLA's CPU backend cuts it in float32, twice as much to move."""
    return lax.bitcast_convert_type(array, jnp.uint16) if array.dtype == jnp.bfloat16 else array


def _from_bits(array: Array, dtype) -> Array:
    return lax.bitcast_convert_type(array, dtype) if array.dtype == jnp.uint16 else array


def _dot(a: Array, b: Array) -> Float32[Array, "rows columns"]:
    """The product of two matrices, summed in float32: a sum in bfloat16 is slow, and wrong."""
    return jnp.dot(a, b, preferred_element_type=jnp.float32)
