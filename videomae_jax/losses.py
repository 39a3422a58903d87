"""What is made small: pre-training's error on hidden tubelets, and the losses of a classifier."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float

from videomae_jax.config import PROBLEM_TYPES, VideoMAEConfig
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
    predictions: Float[Array, "B S P"],
    clips: Float[Array | np.ndarray, "B T H W C"],
    mask: Bool[Array | np.ndarray, "B L"],
    config: VideoMAEConfig,
    *,
    decoder_mask: Bool[Array | np.ndarray, "B L"] | None = None,
) -> Float[Array, ""]:
    """Mean square of prediction minus target over the hidden tubelets.

    Equal to transformers' `VideoMAEForPreTraining.loss`. With a `decoder_mask`, predictions are of
    the S tubelets it leaves (False), and those among them count that the encoder did not see:
    sum(mse * hidden) / sum(hidden) over the batch (VideoMAE V2). No gradient flows into the clips.
    Traced rows of a mask that do not fit the predictions make the loss NaN.

    Raises:
        ValueError: if a mask has values that do not fit the predictions.
    """
    predicted = predictions.shape[1]
    if decoder_mask is None:
        _, indices = split_mask(mask, predicted)
    else:
        indices, _ = split_mask(decoder_mask, config.num_tokens - predicted)
    targets = jax.lax.stop_gradient(gather_tokens(pretraining_targets(clips, config), indices))
    errors = jnp.square(predictions - targets)
    if decoder_mask is None:
        return jnp.mean(errors)
    hidden = jnp.take_along_axis(jnp.asarray(mask), indices, axis=1, mode="clip")
    return jnp.sum(errors.mean(axis=-1) * hidden) / jnp.sum(hidden)


def classification_loss(
    logits: Float[Array, "B labels"],
    targets: Float[Array | np.ndarray, "B targets"],
    *,
    problem_type: str | None = None,
    class_weights: Float[Array | np.ndarray, "labels"] | None = None,
) -> Float[Array, ""]:
    """The loss of a classifier's head, a mean over the batch.

    "single_label_classification" (also None): cross-entropy with targets that are probabilities of
        classes, one-hot or soft (smoothed, mixed). With class weights, each class's term has its
        factor, and the sum is divided by that of the factors: torch's
        `cross_entropy(logits, labels, weight=)` where targets are one-hot.
    "multi_label_classification": the mean over labels of binary cross-entropies, targets between 0
        and 1; weights are factors on labels: torch's `binary_cross_entropy_with_logits(weight=)`.
    "regression": mean square error.

    Raises:
        ValueError: for another problem type, targets of another shape than the logits, or class
            weights where there are no classes.
    """
    if logits.shape != targets.shape:
        raise ValueError(
            f"targets must be [B, labels] = {list(logits.shape)}, got {list(targets.shape)}"
        )
    targets = jnp.asarray(targets)
    weights = jnp.ones(logits.shape[-1]) if class_weights is None else jnp.asarray(class_weights)
    match problem_type or "single_label_classification":
        case "single_label_classification":
            weighted = targets * weights
            return -jnp.sum(weighted * jax.nn.log_softmax(logits)) / jnp.sum(weighted)
        case "multi_label_classification":
            # log(sigmoid(-x)) is log(1 - sigmoid(x)), without the loss of digits.
            positive = targets * jax.nn.log_sigmoid(logits)
            return -jnp.mean(weights * (positive + (1 - targets) * jax.nn.log_sigmoid(-logits)))
        case "regression":
            if class_weights is not None:
                raise ValueError("class weights need classes, and regression has none")
            return jnp.mean(jnp.square(logits - targets))
    raise ValueError(
        f"problem_type must be one of {', '.join(PROBLEM_TYPES)}, got {problem_type!r}"
    )


def balanced_weights(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Factors float32 [labels] inverse to each class's share of `labels`, int [examples].

    Their mean over the labels is 1 where each class occurs; a class that doesn't has the factor 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    weights = len(labels) / (num_classes * np.maximum(counts, 1))
    return np.where(counts, weights, 0.0).astype(np.float32)
