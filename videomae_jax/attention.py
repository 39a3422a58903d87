"""softmax(Q K') V over packed projections: one function, and the maps it would apply."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float


def attend(
    qkv: Float[Array, "B L qkv"],
    num_heads: int,
    *,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B L D"]:
    """Multi-head self-attention of packed queries, keys and values, unmasked, scaled by K ** -0.5.

    `qkv` holds D columns of queries, then keys, then values; head n owns columns [nK, nK + K) of
    each. `drop`, when given, is applied to the weights [B, N, L, L] (attention dropout).
    """
    query, key, value = _split_heads(qkv, num_heads)
    weights = _softmax_scores(query, key)
    if drop is not None:
        weights = drop(weights)
    mixed = jnp.einsum("bnlm,bmnk->blnk", weights, value)
    return mixed.reshape(*qkv.shape[:2], qkv.shape[-1] // 3)


def attention_maps(qkv: Float[Array, "B L qkv"], num_heads: int) -> Float[Array, "B N L L"]:
    """The weights that `attend` applies: row = query, columns sum to 1 over keys."""
    query, key, _ = _split_heads(qkv, num_heads)
    return _softmax_scores(query, key)


def _split_heads(
    qkv: Float[Array, "B L qkv"], num_heads: int
) -> tuple[Float[Array, "B L N K"], Float[Array, "B L N K"], Float[Array, "B L N K"]]:
    batch, tokens, packed = qkv.shape
    query, key, value = jnp.moveaxis(
        qkv.reshape(batch, tokens, 3, num_heads, packed // (3 * num_heads)), 2, 0
    )
    return query, key, value


def _softmax_scores(
    query: Float[Array, "B L N K"], key: Float[Array, "B L N K"]
) -> Float[Array, "B N L L"]:
    scores = jnp.einsum("blnk,bmnk->bnlm", query / math.sqrt(query.shape[-1]), key)
    return jax.nn.softmax(scores, axis=-1)
