"""Which part of a video does the network see, and how is it cut from the canvas?

The videos of a batch have many sizes and arrive squeezed onto one canvas. A box is chosen in the
pixels of the video, (top, left, height, width), as if the video had never been squeezed, and is
then sampled from the canvas straight to the size of the model: squeezing and stretching cancel.
"""

import itertools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt8

TRIES = 10
SCALES = (1.0, 0.875, 0.75, 0.66)
# Height and width may be one step of SCALES apart.
SCALE_PAIRS = [(a, b) for a, b in itertools.product(range(4), repeat=2) if abs(a - b) <= 1]
# (down, right) in quarters of the spare: corners, centre, middles of the sides, and between.
PLACES = [
    *itertools.product((0, 2, 4), repeat=2),
    *itertools.product((1, 3), repeat=2),
]
# Float32 of a whole number may be just below it.
HAIR = 1e-3


def resized_box(
    key: Array,
    size: Int[Array, "2"],
    *,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> Float[Array, "4"]:
    """A box of random area and aspect in a video of `size` (height, width): whole pixels.

    Its share of the area is uniform, the logarithm of width / height is uniform. Of ten tries the
    first that fits; otherwise the largest box in the centre whose aspect is allowed
    (torchvision's RandomResizedCrop; SlowFast and MCG-NJU/VideoMAE do the same).
    """
    high, wide = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    # One draw for all: each compiles to hundreds of instructions.
    draws = jax.random.uniform(key, (2 * TRIES + 2,))
    low, most = math.log(aspect[0]), math.log(aspect[1])
    areas = high * wide * (area[0] + (area[1] - area[0]) * draws[:TRIES])
    aspects = jnp.exp(low + (most - low) * draws[TRIES:-2])
    widths, heights = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (widths > 0) & (widths <= wide) & (heights > 0) & (heights <= high)
    first = jnp.argmax(fits)
    inner = jnp.stack([heights[first], widths[first]])
    spare = jnp.stack([high, wide]) - inner
    # A number close to 1 is rounded up to it in the product.
    corner = jnp.minimum(jnp.floor(draws[-2:] * (spare + 1)), spare)
    box = jnp.concatenate([corner, inner])
    return jnp.where(fits.any(), box, _allowed_box(high, wide, aspect))


def multi_scale_box(
    key: Array, size: Int[Array, "2"], *, shape: tuple[int, int]
) -> Float[Array, "4"]:
    """A box of 1, 0.875, 0.75 or 0.66 of the largest that has the aspect of `shape` (H, W).

    Height and width have scales of their own, at most one step apart; ten pairs, alike in
    probability. It lies at one of 13 places: corners, middles of the sides, the centre and half-way
    between corners and centre. That is TSN's, and what pre-training used.
    """
    number = jax.random.randint(key, (), 0, len(SCALE_PAIRS) * len(PLACES))
    scale = jnp.array([(SCALES[a], SCALES[b]) for a, b in SCALE_PAIRS])[number // len(PLACES)]
    quarters = jnp.array(PLACES)[number % len(PLACES)]
    inner = jnp.floor(_largest(size, shape) * scale + HAIR)
    steps = jnp.floor((size - inner) / 4)
    return jnp.concatenate([quarters * steps, inner])


def centre_box(size: Int[Array, "2"], *, shape: tuple[int, int]) -> Float[Array, "4"]:
    """The largest box that has the aspect of `shape` (H, W), in the centre.

    What validation sees: short side to the model's size, then the centre. Not rounded to whole
    pixels, of which the resized video has others.
    """
    inner = _largest(size, shape)
    return jnp.concatenate([(size - inner) / 2, inner])


def cut(
    clip: UInt8[Array, "h w T C"],
    box: Float[Array, "4"],
    *,
    shape: tuple[int, int],
    antialias: bool,
    mirrored: Bool[Array, ""],
) -> Float[Array, "H W T C"]:
    """A box of the canvas (top, left, height, width, in its pixels), bilinear, at `shape` (H, W).

    Half-pixel centres; nothing from outside the box is looked at, as if it were cut out first.
    antialias: widen the filter where it shrinks, as Pillow does; without it, it is
    torch.nn.functional.interpolate. mirrored: left and right exchanged.
    """
    height, width, frames, colours = clip.shape
    rows, row_weights = _taps(box[0], box[2], height, shape[0], antialias=antialias)
    columns, column_weights = _taps(box[1], box[3], width, shape[1], antialias=antialias)
    columns = jnp.where(mirrored, columns[:, ::-1], columns)
    column_weights = jnp.where(mirrored, column_weights[:, ::-1], column_weights)
    # Pixels first: each gather copies whole rows, then whole stacks of frames.
    lines = clip.reshape(height, width * frames * colours)
    lines = sum(
        weight[:, None] * lines[row].astype(jnp.float32)
        for row, weight in zip(rows, row_weights, strict=True)
    )
    lines = jnp.reshape(lines, (shape[0], width, frames * colours))
    resized = sum(
        weight[:, None] * lines[:, column]
        for column, weight in zip(columns, column_weights, strict=True)
    )
    return jnp.reshape(resized, (*shape, frames, colours))


def on_canvas(
    box: Float[Array, "4"], size: Int[Array, "2"], canvas: tuple[int, int]
) -> Float[Array, "4"]:
    """A box in the pixels of a video of `size`, in those of the canvas it was squeezed onto."""
    return box * jnp.tile(jnp.array(canvas) / size, 2)


def _largest(size: Int[Array, "2"], shape: tuple[int, int]) -> Float[Array, "2"]:
    # Written so that a video of the model's own size gives itself, to the last bit.
    wanted = jnp.array(shape, jnp.float32)
    return jnp.minimum(size.astype(jnp.float32), wanted * size[::-1] / wanted[::-1])


def _allowed_box(high: Array, wide: Array, aspect: tuple[float, float]) -> Float[Array, "4"]:
    """All of the video, or the centre of one that is too narrow or too wide."""
    width = jnp.minimum(wide, jnp.round(high * aspect[1]))
    height = jnp.minimum(high, jnp.round(wide / aspect[0]))
    return jnp.stack([jnp.floor((high - height) / 2), jnp.floor((wide - width) / 2), height, width])


def _taps(
    start: Array, size: Array, length: int, wanted: int, *, antialias: bool
) -> tuple[Int[Array, "taps wanted"], Float[Array, "taps wanted"]]:
    """Which pixels of one axis of the canvas each pixel is made of, and their weights."""
    scale = size / wanted
    # The box is at most the canvas, so the number of taps is known beforehand.
    most = max(length / wanted, 1.0) if antialias else 1.0
    support = jnp.clip(scale, 1.0, most)
    centre = start + (jnp.arange(wanted) + 0.5) * scale - 0.5
    index = jnp.floor(centre - support) + 1 + jnp.arange(math.ceil(2 * most))[:, None]
    first = jnp.floor(start + HAIR)
    last = jnp.ceil(start + size - HAIR) - 1
    weight = jnp.maximum(1 - jnp.abs(index - centre) / support, 0)
    weight = jnp.where((index >= first) & (index <= last), weight, 0)
    weight /= weight.sum(0)
    return jnp.clip(index, 0, length - 1).astype(jnp.int32), weight
