"""Change the colours of a clip's frames, each frame by itself, as Pillow does on uint8 images.

Where an operation looks at the picture (its darkest value, its histogram, its mean), it looks at
one frame at a time, as the published training did. Clips have pixels first, [h, w, T, C], see
`warping`. Three colours, red first.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int, UInt8

from videomae_jax.training.warping import HAIR


def auto_contrast(clip: UInt8[Array, "h w T C"]) -> UInt8[Array, "h w T C"]:
    """Stretched so that the darkest value of each frame and colour is 0 and the brightest 255."""
    values = clip.astype(jnp.int32)
    low, high = values.min((0, 1)), values.max((0, 1))
    stretched = (values - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, values).astype(jnp.uint8)


def equalize(clip: UInt8[Array, "h w T C"]) -> UInt8[Array, "h w T C"]:
    """Every value made about as frequent as every other, in each frame and colour."""
    height, width, frames, colours = clip.shape
    planes = clip.reshape(height * width, frames * colours)
    counts = _histograms(planes)
    brightest = 255 - jnp.argmax(counts[:, ::-1] > 0, axis=1)
    last = jnp.take_along_axis(counts, brightest[:, None], axis=1)
    step = (height * width - last) // 255
    below = jnp.cumsum(counts, axis=1) - counts
    table = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    # Of a frame of one value, or a tiny one, nothing is made.
    table = jnp.where(step > 0, table, jnp.arange(256)).astype(jnp.uint8)
    places = planes.astype(jnp.int32) + 256 * jnp.arange(frames * colours)
    return table.reshape(-1)[places].reshape(clip.shape)


def invert(clip: UInt8[Array, "h w T C"]) -> UInt8[Array, "h w T C"]:
    """255 minus each value."""
    return 255 - clip


def posterize(clip: UInt8[Array, "h w T C"], bits: Int[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Only the `bits` highest of the eight bits kept, 0 to 8."""
    return clip & ((0xFF << (8 - bits)) & 0xFF).astype(jnp.uint8)


def solarize(clip: UInt8[Array, "h w T C"], threshold: Int[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Values from `threshold` on inverted; of 256, none."""
    return jnp.where(clip.astype(jnp.int32) < threshold, clip, 255 - clip)


def solarize_add(clip: UInt8[Array, "h w T C"], addend: Int[Array, ""]) -> UInt8[Array, "h w T C"]:
    """`addend` added to values below 128, to 255 at most."""
    values = clip.astype(jnp.int32)
    brighter = jnp.minimum(values + addend, 255)
    return jnp.where(values < 128, brighter, values).astype(jnp.uint8)


def color(clip: UInt8[Array, "h w T C"], factor: Float[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Between grey (0) and itself (1), or beyond."""
    return _blend(_grey(clip)[..., None], clip, factor)


def contrast(clip: UInt8[Array, "h w T C"], factor: Float[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Between the mean grey of its frame (0) and itself (1), or beyond."""
    pixels = clip.shape[0] * clip.shape[1]
    mean = (2 * _grey(clip).sum((0, 1)) + pixels) // (2 * pixels)
    return _blend(mean[:, None], clip, factor)


def brightness(clip: UInt8[Array, "h w T C"], factor: Float[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Between black (0) and itself (1), or beyond."""
    return _blend(jnp.zeros((), jnp.int32), clip, factor)


def sharpness(clip: UInt8[Array, "h w T C"], factor: Float[Array, ""]) -> UInt8[Array, "h w T C"]:
    """Between itself smoothed (0) and itself (1), or beyond; edge pixels stay as they are."""
    height, width = clip.shape[:2]
    values = clip.astype(jnp.int32)
    total = 4 * values[1:-1, 1:-1]
    for down in range(3):
        for right in range(3):
            total += values[down : down + height - 2, right : right + width - 2]
    smooth = values.at[1:-1, 1:-1].set((2 * total + 13) // 26)
    return _blend(smooth, clip, factor)


def _blend(
    degenerate: Int[Array, "..."], clip: UInt8[Array, "h w T C"], factor: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    start = degenerate.astype(jnp.float32)
    blended = start + factor * (clip.astype(jnp.float32) - start)
    return jnp.clip(blended + HAIR, 0, 255).astype(jnp.uint8)


def _grey(clip: UInt8[Array, "h w T C"]) -> Int[Array, "h w T"]:
    """The luma of ITU-R 601, in Pillow's fixed-point arithmetic."""
    red, green, blue = (clip[..., colour].astype(jnp.int32) for colour in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _histograms(planes: UInt8[Array, "pixels planes"]) -> Int[Array, "planes 256"]:
    """How often each value occurs in each column."""
    count = planes.shape[1]

    def scattered(planes: Array) -> Array:
        places = planes.astype(jnp.int32) + 256 * jnp.arange(count)
        counts = jnp.zeros(256 * count, jnp.int32).at[places.reshape(-1)].add(1)
        return counts.reshape(count, 256)

    def compared(planes: Array) -> Array:
        values = jnp.arange(256, dtype=jnp.uint8)
        return jax.lax.map(lambda v: (planes == v).sum(0, dtype=jnp.int32), values).T

    # A TPU scatters one value at a time.
    return jax.lax.platform_dependent(planes, tpu=compared, default=scattered)
