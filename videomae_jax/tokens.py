"""Clip <-> tubelets, their projection, and the sinusoid position table. Pure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Shaped

from videomae_jax.config import VideoMAEConfig
from videomae_jax.precision import product


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


def project_tubelets(
    clips: Shaped[Array | np.ndarray, "B T H W C"],
    kernel: Float[Array | np.ndarray, "P D"],
    config: VideoMAEConfig,
    dtype: np.dtype,
) -> Float32[Array, "B L D"]:
    """tubelets(clips) @ kernel, both rounded to `dtype`, summed in float32."""
    return _project(jnp.asarray(clips, dtype), jnp.asarray(kernel, dtype), config)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(clips: Array, kernel: Array, config: VideoMAEConfig) -> Array:
    return jax.lax.platform_dependent(
        clips,
        kernel,
        tpu=functools.partial(_project_by_convolution, config=config),
        default=functools.partial(_project_cut, config=config),
    )


def _project_forward(
    clips: Array, kernel: Array, config: VideoMAEConfig
) -> tuple[Array, tuple[Array, Array]]:
    return _project(clips, kernel, config), (clips, kernel)


def _project_backward(
    config: VideoMAEConfig, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    return jax.vjp(functools.partial(_project_cut, config=config), *kept)[1](gradient)


_project.defvjp(_project_forward, _project_backward)


def _project_cut(clips: Array, kernel: Array, *, config: VideoMAEConfig) -> Array:
    return product(tubelets(clips, config), kernel, kernel.dtype)


def _project_by_convolution(clips: Array, kernel: Array, *, config: VideoMAEConfig) -> Array:
    """For TPUs: a convolution for each frame of a tubelet, and their sum.

    TPUs fill registers along the last axis, where three colours leave 125 of 128 lanes: the
    compiler knows how to cut such images for a convolution, not for a product of matrices (0.030 GB
    a clip in place of 0.138, modelled for v5e; one convolution in three dimensions 0.061).
    """
    frames = clips.reshape(-1, config.tubelet_size, *clips.shape[2:])
    window = (*config.patch_size, config.num_channels, kernel.shape[-1])
    kernels = kernel.reshape(config.tubelet_size, *window)
    projected = sum(
        jax.lax.conv_general_dilated(
            frames[:, number],
            kernels[number],
            window_strides=config.patch_size,
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            preferred_element_type=jnp.float32,
        )
        for number in range(config.tubelet_size)
    )
    return jnp.asarray(projected).reshape(-1, config.num_tokens, kernel.shape[-1])


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
