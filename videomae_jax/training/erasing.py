"""Random erasing: noise in the place of a box of a clip, the same box in every frame."""

import math

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

TRIES = 100
AREA = (0.02, 1 / 3)
ASPECT = (0.3, 1 / 0.3)


def erase(
    key: Array, clip: Float[Array, "T H W C"], *, probability: float
) -> Float[Array, "T H W C"]:
    """With `probability`, a box of a normalised clip filled with noise.

    timm's RandomErasing, mode "pixel", one box: every value of it, in every frame and colour,
    standard normal and independent of the others (SlowFast and MCG-NJU/VideoMAE do the same).
    Under `jax.vmap` noise is made for every clip, in a loop for the erased ones only.
    """
    whether, where, noise = jax.random.split(key, 3)
    top, left, height, width = erased_box(where, clip.shape[1], clip.shape[2])
    rows, columns = jnp.arange(clip.shape[1])[:, None], jnp.arange(clip.shape[2])
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)

    def erased(clip: Array) -> Array:
        filling = jax.random.normal(noise, clip.shape, clip.dtype)
        return jnp.where(inside[..., None], filling, clip)

    chosen = jax.random.uniform(whether) < probability
    return jax.lax.cond(chosen, erased, lambda clip: clip, clip)


def erased_box(key: Array, high: int, wide: int) -> Int[Array, "4"]:
    """(top, left, height, width) of a random box in frames of high x wide; all 0 if none fits.

    A share of 0.02 to 1/3 of the area, uniform, and height / width of 0.3 to 1/0.3, uniform in the
    logarithm; the first of a hundred tries that is smaller than the frame in both directions.
    """
    draws = jax.random.uniform(key, (2 * TRIES + 2,))
    low, most = math.log(ASPECT[0]), math.log(ASPECT[1])
    areas = high * wide * (AREA[0] + (AREA[1] - AREA[0]) * draws[:TRIES])
    aspects = jnp.exp(low + (most - low) * draws[TRIES:-2])
    heights, widths = jnp.round(jnp.sqrt(areas * aspects)), jnp.round(jnp.sqrt(areas / aspects))
    fits = (heights < high) & (widths < wide)
    first = jnp.argmax(fits)
    height, width = heights[first], widths[first]
    # A number close to 1 is rounded up to it in the product.
    top = jnp.minimum(jnp.floor(draws[-2] * (high - height + 1)), high - height)
    left = jnp.minimum(jnp.floor(draws[-1] * (wide - width + 1)), wide - width)
    box = jnp.stack([top, left, height, width]).astype(jnp.int32)
    return jnp.where(fits.any(), box, 0)
