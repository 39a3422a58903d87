"""softmax(Q K') V over packed projections: one function, and the maps it would apply."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

# log(1 / 0.01) as VideoMAE V2 rounds it.
LARGEST_LOGIT_SCALE = 4.6052


def attend(
    qkv: Float[Array, "B L qkv"],
    num_heads: int,
    *,
    drop: Callable[[Array], Array] | None = None,
    logit_scale: Float[Array, "N"] | None = None,
) -> Float[Array, "B L D"]:
    """Multi-head self-attention of packed queries, keys and values, unmasked, scaled by K ** -0.5.

    `qkv` holds D columns of queries, then keys, then values; head n owns columns [nK, nK + K) of
    each. `drop`, when given, is applied to the weights [B, N, L, L] (attention dropout). With
    `logit_scale`, the logarithm of a factor for each head, queries and keys have length 1 and the
    factor, 100 at most, takes the place of K ** -0.5 (VideoMAE V2's cosine attention).
    """
    query, key, value = _split_heads(qkv, num_heads)
    weights = _softmax_scores(query, key, logit_scale)
    if drop is not None:
        weights = drop(weights)
    mixed = jnp.einsum("bnlm,bmnk->blnk", weights, value)
    return mixed.reshape(*qkv.shape[:2], qkv.shape[-1] // 3)


def attention_maps(
    qkv: Float[Array, "B L qkv"], num_heads: int, *, logit_scale: Float[Array, "N"] | None = None
) -> Float[Array, "B N L L"]:
    """The weights that `attend` applies: row = query, columns sum to 1 over keys."""
    query, key, _ = _split_heads(qkv, num_heads)
    return _softmax_scores(query, key, logit_scale)


def _split_heads(
    qkv: Float[Array, "B L qkv"], num_heads: int
) -> tuple[Float[Array, "B L N K"], Float[Array, "B L N K"], Float[Array, "B L N K"]]:
    batch, tokens, packed = qkv.shape
    query, key, value = jnp.moveaxis(
        qkv.reshape(batch, tokens, 3, num_heads, packed // (3 * num_heads)), 2, 0
    )
    return query, key, value


def _softmax_scores(
    query: Float[Array, "B L N K"],
    key: Float[Array, "B L N K"],
    logit_scale: Float[Array, "N"] | None,
) -> Float[Array, "B N L L"]:
    if logit_scale is None:
        query = query / math.sqrt(query.shape[-1])
    else:
        factor = jnp.exp(jnp.minimum(logit_scale, LARGEST_LOGIT_SCALE))
        query, key = _unit_length(query) * factor[:, None], _unit_length(key)
    scores = jnp.einsum("blnk,bmnk->bnlm", query, key)
    return jax.nn.softmax(scores, axis=-1)


def _unit_length(vectors: Float[Array, "B L N K"]) -> Float[Array, "B L N K"]:
    # In float16 a square of 256 is infinite, and 1e-24 is 0.
    wide = vectors.astype(jnp.float32)
    squares = jnp.sum(wide**2, axis=-1, keepdims=True)
    # torch's normalize divides by no less than 1e-12; so much under the root keeps the gradient of
    # a zero vector finite.
    return (wide / jnp.sqrt(jnp.maximum(squares, 1e-24))).astype(vectors.dtype)
