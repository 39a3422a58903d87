"""The pre-training loss: mean squared error on the tubelets that were hidden."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from videomae_jax.config import VideoMAEConfig
from videomae_jax.masking import gather_tokens, split_mask
from videomae_jax.processing import IMAGENET_MEAN, IMAGENET_STD
from videomae_jax.tokens import tubelets


def pretraining_targets(
    clips: Float[Array | np.ndarray, "B T H W C"], config: VideoMAEConfig
) -> Float[Array, "B L P"]:
    """What the pre-trainer should predict for each tubelet, flattened in the order (p0, p1, p2, c).

    Clips of three colours are un-normalised with ImageNet's mean and deviation, whatever the
    checkpoint's preprocessing normalised with. With
    `norm_pix_loss`, each tubelet and colour is then normalised by its own mean and unbiased
    deviation, (p - mean) / (sqrt(variance) + 1e-6). Source: MCG-NJU/VideoMAE, transformers.

    Raises:
        ValueError: without `norm_pix_loss` for other than three colours, which have no known mean.
    """
    pixels = jnp.asarray(clips)
    if config.num_channels == 3:
        pixels = pixels * jnp.asarray(IMAGENET_STD) + jnp.asarray(IMAGENET_MEAN)
    elif not config.norm_pix_loss:
        raise ValueError(
            f"norm_pix_loss=False needs num_channels=3, whose mean is known, "
            f"got {config.num_channels}"
        )
    targets = tubelets(pixels, config)
    if not config.norm_pix_loss:
        return targets
    colours = targets.reshape(*targets.shape[:2], -1, config.num_channels)
    mean = colours.mean(axis=2, keepdims=True)
    deviation = colours.std(axis=2, keepdims=True, ddof=1)
    # The epsilon stands outside the root.
    return ((colours - mean) / (deviation + 1e-6)).reshape(targets.shape)


def pretraining_loss(
    predictions: Float[Array, "B M P"],
    clips: Float[Array | np.ndarray, "B T H W C"],
    mask: Bool[Array | np.ndarray, "B L"],
    config: VideoMAEConfig,
) -> Float[Array, ""]:
    """Mean square of prediction minus target over the hidden tubelets.

    Equal to transformers' `VideoMAEForPreTraining.loss`. No gradient flows into the clips. Traced
    rows of `mask` that do not hide M tokens make the loss NaN.

    Raises:
        ValueError: if `mask` has values and does not hide M tokens a row.
    """
    _, hidden = split_mask(mask, predictions.shape[1])
    targets = gather_tokens(pretraining_targets(clips, config), hidden)
    return jnp.mean(jnp.square(predictions - jax.lax.stop_gradient(targets)))
