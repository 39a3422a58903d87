"""Mixup and cutmix: each clip of a batch is mixed with another one, and so are their targets.

The clips of a batch are paired with those of the reversed batch, and all are mixed alike, as in
timm's `Mixup` in its mode "batch".
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from videomae_jax.training.settings import Augment


def one_hot(labels: Int[Array, "B"], classes: int, *, smoothing: float) -> Float[Array, "B K"]:
    """Targets of single labels: smoothing / classes for each class, the rest for the right one.

    A label that is no class, such as -1, gives the share of all classes and no right one.
    """
    return smoothing / classes + (1 - smoothing) * jax.nn.one_hot(labels, classes)


def mix(
    key: Array,
    clips: Float[Array, "B T H W C"],
    targets: Float[Array, "B K"],
    *,
    settings: Augment,
) -> tuple[Float[Array, "B T H W C"], Float[Array, "B K"]]:
    """The clips and their targets, mixed with those of the reversed batch, as `settings` say.

    With probability `mix`, one of the two ways is chosen for the whole batch: cutmix with
    probability `mix_switch` where both are on. The share that a clip keeps is drawn from
    Beta(alpha, alpha). Cutmix counts the share that a box really leaves, cut off at the edges.
    """
    if not settings.mixup and not settings.cutmix:
        return clips, targets
    kept, share = draw_mix(key, clips.shape[2], clips.shape[3], settings=settings)
    kept = kept[:, :, None].astype(clips.dtype)
    mixed = kept * clips + (1 - kept) * clips[::-1]
    return mixed, share * targets + (1 - share) * targets[::-1]


def draw_mix(
    key: Array, high: int, wide: int, *, settings: Augment
) -> tuple[Float[Array, "high wide"], Float[Array, ""]]:
    """How much each pixel keeps of its own clip, and how much the targets do: its mean.

    The same share everywhere for mixup; 0 in a box and 1 around it for cutmix.
    """
    whether, which, mixup, cutmix, box = jax.random.split(key, 5)
    chance = (
        settings.mix_switch if settings.mixup and settings.cutmix else float(not settings.mixup)
    )
    cut = jax.random.bernoulli(which, chance)
    # An alpha of 0 is never chosen, but would be computed.
    share = jax.random.beta(mixup, settings.mixup or 1.0, settings.mixup or 1.0)
    left = jax.random.beta(cutmix, settings.cutmix or 1.0, settings.cutmix or 1.0)
    outside = ~cut_box(box, left, high, wide)
    kept = jnp.where(cut, outside, jnp.full((high, wide), share))
    kept = jnp.where(jax.random.bernoulli(whether, settings.mix), kept, 1.0)
    return kept, jnp.where(cut, kept.mean(), kept[0, 0])


def cut_box(key: Array, share: Float[Array, ""], high: int, wide: int) -> Bool[Array, "high wide"]:
    """Where cutmix pastes: a box with 1 - share of the frame's area before it meets the edges.

    Its centre is uniform over the pixels of the frame; half of its height and width, whole pixels,
    lie on either side.
    """
    ratio = jnp.sqrt(1 - share)
    down, right = jax.random.split(key)
    middle_y = jax.random.randint(down, (), 0, high)
    middle_x = jax.random.randint(right, (), 0, wide)
    half_y = (high * ratio).astype(jnp.int32) // 2
    half_x = (wide * ratio).astype(jnp.int32) // 2
    rows, columns = jnp.arange(high)[:, None], jnp.arange(wide)
    return (
        (rows >= middle_y - half_y)
        & (rows < middle_y + half_y)
        & (columns >= middle_x - half_x)
        & (columns < middle_x + half_x)
    )
