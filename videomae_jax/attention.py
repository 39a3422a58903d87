"""softmax(Q K') V over packed projections: one function, a backend for each kind of device.

    "blocked"  CPU: a head and a block of query rows at a time
    "cudnn"    NVIDIA GPU: cuDNN's fused attention, for bfloat16; else "xla"
    "pallas"   TPU: a kernel for sequences whose keys and values fit on the chip's core
    "xla"      any device: all scores at once, in memory

Scores, softmax and sums are float32 in each of them, whatever the dtype of the projections. All
have gradients, and each chip works on its own clips where a batch is sharded.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Float32

from videomae_jax.kernels.blocked_attention import blocked_attention
from videomae_jax.kernels.cudnn_attention import cudnn_attention
from videomae_jax.kernels.kept import keep

# log(1 / 0.01) as VideoMAE V2 rounds it.
LARGEST_LOGIT_SCALE = 4.6052


def attend(
    qkv: Float[Array, "B L qkv"],
    num_heads: int,
    *,
    drop: Callable[[Array], Array] | None = None,
    logit_scale: Float[Array, "N"] | None = None,
    backend: str | None = None,
) -> Float[Array, "B L D"]:
    """Multi-head self-attention of packed queries, keys and values, unmasked, scaled by K ** -0.5.

    `qkv` holds D columns of queries, then keys, then values; head n owns columns [nK, nK + K) of
    each. `drop`, when given, is applied to the weights [B, N, L, L] (attention dropout), which only
    "xla" has. With `logit_scale`, the logarithm of a factor for each head, queries and keys have
    length 1 and the factor, 100 at most, takes the place of K ** -0.5 (VideoMAE V2's cosine
    attention). `backend` is a name in `BACKENDS`; None: what suits the device that the program is
    lowered for.

    Raises:
        ValueError: for an unknown backend, or `drop` with one that has no weights.
    """
    check_backend(backend)
    if logit_scale is not None:
        qkv = _by_angle(qkv, logit_scale)
    scale = _scale(qkv, num_heads, logit_scale)
    if drop is None:
        return BACKENDS[backend](qkv, num_heads, scale)
    if backend not in (None, "xla"):
        raise ValueError(f"attention dropout needs the backend 'xla', got {backend!r}")
    return _xla_attention(qkv, num_heads, scale, drop=drop)


def attention_maps(
    qkv: Float[Array, "B L qkv"], num_heads: int, *, logit_scale: Float[Array, "N"] | None = None
) -> Float32[Array, "B N L L"]:
    """The weights that `attend` applies: row = query, columns sum to 1 over keys."""
    if logit_scale is not None:
        qkv = _by_angle(qkv, logit_scale)
    query, key, _ = _split_heads(qkv, num_heads)
    return _weights(query, key, _scale(qkv, num_heads, logit_scale))


def check_backend(backend: str | None) -> None:
    """Refuse a name that is none of `BACKENDS`.

    Raises:
        ValueError: naming those there are.
    """
    if backend not in BACKENDS:
        names = ", ".join(name for name in BACKENDS if name)
        raise ValueError(f"attention backend must be None or one of {names}, got {backend!r}")


def _scale(qkv: Array, num_heads: int, logit_scale: Array | None) -> float:
    return 1.0 if logit_scale is not None else (qkv.shape[-1] // (3 * num_heads)) ** -0.5


def _split_heads(
    qkv: Float[Array, "B L qkv"], num_heads: int
) -> tuple[Float[Array, "B L N K"], Float[Array, "B L N K"], Float[Array, "B L N K"]]:
    batch, tokens, packed = qkv.shape
    query, key, value = jnp.moveaxis(
        qkv.reshape(batch, tokens, 3, num_heads, packed // (3 * num_heads)), 2, 0
    )
    return query, key, value


def _by_angle(
    qkv: Float[Array, "B L qkv"], logit_scale: Float[Array, "N"]
) -> Float[Array, "B L qkv"]:
    """Queries and keys at length 1, queries times the factor of their head."""
    query, key, value = _split_heads(qkv, logit_scale.shape[0])
    factor = jnp.exp(jnp.minimum(logit_scale.astype(jnp.float32), LARGEST_LOGIT_SCALE))
    turned = (_unit_length(query) * factor[:, None], _unit_length(key), value)
    return jnp.stack([part.astype(qkv.dtype) for part in turned], axis=2).reshape(qkv.shape)


def _unit_length(vectors: Float[Array, "B L N K"]) -> Float32[Array, "B L N K"]:
    # In float16 a square of 256 is infinite, and 1e-24 is 0.
    wide = vectors.astype(jnp.float32)
    squares = jnp.sum(wide**2, axis=-1, keepdims=True)
    # torch's normalize divides by no less than 1e-12; so much under the root keeps the gradient of
    # a zero vector finite.
    return wide / jnp.sqrt(jnp.maximum(squares, 1e-24))


def _weights(
    query: Float[Array, "B L N K"], key: Float[Array, "B L N K"], scale: float
) -> Float32[Array, "B N L L"]:
    scores = jnp.einsum("blnk,bmnk->bnlm", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * scale, axis=-1)


def _xla_attention(
    qkv: Float[Array, "B L qkv"],
    num_heads: int,
    scale: float,
    *,
    drop: Callable[[Array], Array] | None = None,
) -> Float[Array, "B L D"]:
    query, key, value = _split_heads(qkv, num_heads)
    weights = _weights(query, key, scale)
    if drop is not None:
        weights = drop(weights)
    mixed = jnp.einsum(
        "bnlm,bmnk->blnk", weights.astype(qkv.dtype), value, preferred_element_type=jnp.float32
    )
    return keep(mixed.astype(qkv.dtype).reshape(*qkv.shape[:2], qkv.shape[-1] // 3))


def _cudnn_attention(
    qkv: Float[Array, "B L qkv"], num_heads: int, scale: float
) -> Float[Array, "B L D"]:
    mixed = cudnn_attention(qkv, num_heads, scale)
    return _xla_attention(qkv, num_heads, scale) if mixed is None else keep(mixed)


def _pallas_attention(
    qkv: Float[Array, "B L qkv"], num_heads: int, scale: float
) -> Float[Array, "B L D"]:
    # Pallas takes as long to import as all of this package.
    from videomae_jax.kernels.short_attention import short_attention

    return keep(short_attention(qkv, num_heads, scale))


def _as_lowered(
    qkv: Float[Array, "B L qkv"], num_heads: int, scale: float
) -> Float[Array, "B L D"]:
    """The backend of the device that the program is lowered for."""

    def of(backend: str) -> Callable[[Array], Array]:
        return functools.partial(_called, BACKENDS[backend], num_heads, scale)

    return lax.platform_dependent(
        qkv, cpu=of("blocked"), cuda=of("cudnn"), tpu=of("pallas"), default=of("xla")
    )


def _called(backend: Callable, num_heads: int, scale: float, qkv: Array) -> Array:
    return backend(qkv, num_heads, scale)


BACKENDS: dict[str | None, Callable[[Array, int, float], Array]] = {
    None: _as_lowered,
    "blocked": blocked_attention,
    "cudnn": _cudnn_attention,
    "pallas": _pallas_attention,
    "xla": _xla_attention,
}
