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
    draws, beta, box = jax.random.split(key, 3)
    both = settings.mixup and settings.cutmix
    done, cut = jax.random.uniform(draws, (2,)) < jnp.array(
        [settings.mix, settings.mix_switch if both else float(not settings.mixup)]
    )
    alpha = jnp.where(cut, settings.cutmix, settings.mixup)
    share = jax.random.beta(beta, alpha, alpha)
    inside = cut_box(box, share, high, wide)
    kept = jnp.where(cut, ~inside, share)
    share = jnp.where(cut, 1 - inside.mean(), share)
    return jnp.where(done, kept, 1.0), jnp.where(done, share, 1.0)


def cut_box(key: Array, share: Float[Array, ""], high: int, wide: int) -> Bool[Array, "high wide"]:
    """Where cutmix pastes: a box with 1 - share of the frame's area before it meets the edges.

    Its centre is uniform over the pixels of the frame; half of its height and width, whole pixels,
    lie on either side.
    """
    ratio = jnp.sqrt(1 - share)
    middle = jax.random.randint(key, (), 0, high * wide)
    middle_y, middle_x = middle // wide, middle % wide
    half_y = (high * ratio).astype(jnp.int32) // 2
    half_x = (wide * ratio).astype(jnp.int32) // 2
    rows, columns = jnp.arange(high)[:, None], jnp.arange(wide)
    return (
        (rows >= middle_y - half_y)
        & (rows < middle_y + half_y)
        & (columns >= middle_x - half_x)
        & (columns < middle_x + half_x)
    )
