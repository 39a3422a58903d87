"""Clip <-> tubelets, and the sinusoid position table. Pure."""

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from videomae_jax.config import VideoMAEConfig


def tubelets(
    clips: Shaped[Array | np.ndarray, "B T H W C"], config: VideoMAEConfig
) -> Shaped[Array, "B L P"]:
    """Cut clips into L tubelets in (t, h, w) order, each flattened in the order (p0, p1, p2, c).

    The same order as the pre-training target of the original code: "b (t p0) (h p1) (w p2) c ->
    b (t h w) (p0 p1 p2 c)".
    """
    (time, high, wide), (patch_height, patch_width) = config.grid, config.patch_size
    batch = clips.shape[0]
    cut = jnp.asarray(clips).reshape(
        batch, time, config.tubelet_size, high, patch_height, wide, patch_width, config.num_channels
    )
    return cut.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(
        batch, config.num_tokens, config.tubelet_pixels
    )


def clips_from_tubelets(
    tokens: Shaped[Array | np.ndarray, "B L P"], config: VideoMAEConfig
) -> Shaped[Array, "B T H W C"]:
    """The inverse of `tubelets`."""
    (time, high, wide), (patch_height, patch_width) = config.grid, config.patch_size
    batch = tokens.shape[0]
    cut = jnp.asarray(tokens).reshape(
        batch, time, high, wide, config.tubelet_size, patch_height, patch_width, config.num_channels
    )
    return cut.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(batch, *config.clip_shape)


@functools.lru_cache(maxsize=16)
def sinusoid_table(num_tokens: int, width: int) -> Float[np.ndarray, "L D"]:
    """Fixed positions: angle = position / 10000^(2(j//2)/D); sin at even j, cos at odd j.

    One-dimensional over all L tokens, computed in float64 and rounded to float32, never stored in
    a checkpoint (MCG-NJU/VideoMAE, transformers). The array is shared between callers: read-only.
    """
    columns = np.arange(width)
    angles = np.arange(num_tokens)[:, None] / np.power(10000.0, 2 * (columns // 2) / width)
    table = np.where(columns % 2 == 0, np.sin(angles), np.cos(angles)).astype(np.float32)
    table.flags.writeable = False
    return table
