"""Rotate, shear and move the frames of a clip, all of them alike, as Pillow's `transform` does.

Bicubic, which is what the published fine-tunings were run with; what comes from outside the frame
is grey, 128. Clips have pixels first, [h, w, T, C]: a gather then copies T * C values at a time.

A canvas may be squeezed. `stretch` is the height of a canvas pixel divided by its width, both in
pixels of the video: angles are those of the video, whatever the canvas.
"""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, UInt8

FILL = 128
# Pillow cuts fractions off; a hair more keeps a whole number whole that float32 is just below.
HAIR = 1e-3


def rotate(
    clip: UInt8[Array, "h w T C"], degrees: Float[Array, ""], stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """Turned counter-clockwise about the centre."""
    angle = -jnp.deg2rad(degrees)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    middle_y, middle_x = clip.shape[0] / 2, clip.shape[1] / 2
    y, x = _centres(clip)
    y, x = y - middle_y, x - middle_x
    source_y = cos * y - sin / stretch * x + middle_y
    source_x = cos * x + sin * stretch * y + middle_x
    return _look_up(clip, source_y, source_x)


def shear_x(
    clip: UInt8[Array, "h w T C"], factor: Float[Array, ""], stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """Each row moved left by `factor` times its distance from the top."""
    y, x = _centres(clip)
    return _look_up(clip, None, x + factor * stretch * y)


def shear_y(
    clip: UInt8[Array, "h w T C"], factor: Float[Array, ""], stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """Each column moved up by `factor` times its distance from the left."""
    y, x = _centres(clip)
    return _look_up(clip, y + factor / stretch * x, None)


def translate_x(
    clip: UInt8[Array, "h w T C"], share: Float[Array, ""], stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """Moved left by a share of the width."""
    del stretch
    y, x = _centres(clip)
    return _look_up(clip, None, x + share * clip.shape[1] + 0 * y)


def translate_y(
    clip: UInt8[Array, "h w T C"], share: Float[Array, ""], stretch: Float[Array, ""]
) -> UInt8[Array, "h w T C"]:
    """Moved up by a share of the height."""
    del stretch
    y, x = _centres(clip)
    return _look_up(clip, y + share * clip.shape[0] + 0 * x, None)


def _centres(clip: UInt8[Array, "h w T C"]) -> tuple[Float[Array, "h 1"], Float[Array, "1 w"]]:
    height, width = clip.shape[:2]
    return jnp.arange(height)[:, None] + 0.5, jnp.arange(width)[None] + 0.5


def _look_up(
    clip: UInt8[Array, "h w T C"],
    source_y: Float[Array, "h w"] | None,
    source_x: Float[Array, "h w"] | None,
) -> UInt8[Array, "h w T C"]:
    """The clip at other places; None where a row, or a column, stays itself: fewer taps."""
    height, width, frames, colours = clip.shape
    pixels = clip.reshape(height * width, frames * colours)
    rows, inside_y = _taps(source_y, jnp.arange(height)[:, None], height)
    columns, inside_x = _taps(source_x, jnp.arange(width)[None], width)
    total = jnp.zeros((height, width, frames * colours))
    for row, row_weight in rows:
        for column, column_weight in columns:
            weight = (row_weight * column_weight)[..., None]
            total += weight * pixels[row * width + column].astype(jnp.float32)
    moved = jnp.floor(jnp.clip(total + HAIR, 0, 255))
    inside = jnp.broadcast_to(inside_y & inside_x, (height, width))[..., None]
    return jnp.where(inside, moved, FILL).astype(jnp.uint8).reshape(clip.shape)


def _taps(
    source: Float[Array, "h w"] | None, itself: Array, size: int
) -> tuple[list[tuple[Array, Array]], Array]:
    """[(index, weight)] along one axis, and where the source lies inside of the frame.

    The cubic that Pillow's `transform` has, whose outer weights are twice those of its `resize`.
    """
    if source is None:
        return [(itself, jnp.ones((1, 1)))], jnp.ones((1, 1), bool)
    inside = (source >= 0) & (source < size)
    first = jnp.floor(source - 0.5)
    d = source - 0.5 - first
    weights = (
        -d + 2 * d**2 - d**3,
        1 - 2 * d**2 + d**3,
        d + d**2 - d**3,
        -(d**2) + d**3,
    )
    places = [jnp.clip(first.astype(jnp.int32) + tap, 0, size - 1) for tap in (-1, 0, 1, 2)]
    return list(zip(places, weights, strict=True)), inside
