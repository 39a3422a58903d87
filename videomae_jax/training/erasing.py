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

    return jax.lax.cond(jax.random.bernoulli(whether, probability), erased, lambda clip: clip, clip)


def erased_box(key: Array, high: int, wide: int) -> Int[Array, "4"]:
    """(top, left, height, width) of a random box in frames of high x wide; all 0 if none fits.

    A share of 0.02 to 1/3 of the area, uniform, and height / width of 0.3 to 1/0.3, uniform in the
    logarithm; the first of a hundred tries that is smaller than the frame in both directions.
    """
    areas, aspects, down, right = jax.random.split(key, 4)
    areas = high * wide * jax.random.uniform(areas, (TRIES,), minval=AREA[0], maxval=AREA[1])
    logs = jax.random.uniform(
        aspects, (TRIES,), minval=math.log(ASPECT[0]), maxval=math.log(ASPECT[1])
    )
    heights = jnp.round(jnp.sqrt(areas * jnp.exp(logs))).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / jnp.exp(logs))).astype(jnp.int32)
    fits = (heights < high) & (widths < wide)
    first = jnp.argmax(fits)
    height, width = heights[first], widths[first]
    top = jax.random.randint(down, (), 0, jnp.maximum(high - height, 0) + 1)
    left = jax.random.randint(right, (), 0, jnp.maximum(wide - width, 0) + 1)
    return jnp.where(fits.any(), jnp.stack([top, left, height, width]), 0)
