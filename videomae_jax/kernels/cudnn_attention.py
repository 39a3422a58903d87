"""Attention for NVIDIA GPUs: cuDNN's fused kernel, through `jax.nn.dot_product_attention`."""

import functools
import logging

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

LOGGER = logging.getLogger(__name__)


def cudnn_attention(
    qkv: Float[Array, "B L qkv"], num_heads: int, scale: float
) -> Float[Array, "B L D"] | None:
    """softmax(scale Q K') V of each head, from packed projections; see `attention.attend`.

    None where cuDNN has no such kernel: float32, or a head width that is no multiple of 8 or above
    128; or where it doesn't work at all, which a trial tells once, with one warning.
    """
    batch, tokens, packed = qkv.shape
    width = packed // (3 * num_heads)
    fits = qkv.dtype == jnp.bfloat16 and width % 8 == 0 and width <= 128
    if not fits or not cudnn_works():
        return None
    return _fused(qkv.reshape(batch, tokens, 3, num_heads, width), scale)


def _fused(heads: Float[Array, "B L 3 N K"], scale: float) -> Float[Array, "B L D"]:
    query, key, value = (heads[:, :, part] for part in range(3))
    mixed = jax.nn.dot_product_attention(query, key, value, scale=scale, implementation="cudnn")
    return mixed.reshape(*mixed.shape[:2], -1)


@functools.cache
def cudnn_works() -> bool:
    """Whether a small problem runs on the first GPU; a warning says why not.

    Without a GPU there is nothing to say.
    """
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return False
    try:
        with jax.ensure_compile_time_eval():
            heads = jax.device_put(jnp.ones((1, 64, 3, 1, 64), jnp.bfloat16), device)
            jax.block_until_ready(jax.jit(_fused, static_argnums=1)(heads, 0.125))
    # cuDNN is absent, too old, or has no kernel for this GPU: whatever the layers below raise.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        LOGGER.warning("cuDNN's attention doesn't work here (%s): using XLA's", reason)
        return False
    return True
