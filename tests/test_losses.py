import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY, random_clips
from videomae_jax.losses import (
    balanced_weights,
    classification_loss,
    pretraining_loss,
    pretraining_targets,
)
from videomae_jax.masking import tube_mask
from videomae_jax.processing import IMAGENET_MEAN, IMAGENET_STD
from videomae_jax.tokens import tubelets

CLIPS = random_clips(TINY)
MASK = np.asarray(tube_mask(jax.random.key(1), TINY, batch=2, ratio=0.6))


def test_targets_are_normalised_per_tubelet_and_colour():
    targets = np.asarray(pretraining_targets(CLIPS, TINY), np.float64)
    pixels = CLIPS.astype(np.float64) * IMAGENET_STD + IMAGENET_MEAN
    patches = np.asarray(tubelets(pixels, TINY)).reshape(2, TINY.num_tokens, -1, 3)
    deviation = np.sqrt(patches.var(axis=2, ddof=1, keepdims=True))
    wanted = (patches - patches.mean(axis=2, keepdims=True)) / (deviation + 1e-6)
    np.testing.assert_allclose(targets, wanted.reshape(targets.shape), rtol=0, atol=1e-5)


def test_targets_without_normalisation_are_the_pixels():
    config = dataclasses.replace(TINY, norm_pix_loss=False)
    pixels = CLIPS * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    np.testing.assert_allclose(
        pretraining_targets(CLIPS, config), tubelets(pixels, TINY), rtol=0, atol=1e-6
    )


def test_a_flat_tubelet_gives_no_nan():
    assert np.isfinite(pretraining_targets(np.zeros_like(CLIPS), TINY)).all()


def test_other_channels_have_no_mean_to_undo():
    config = dataclasses.replace(TINY, num_channels=2)
    clips = random_clips(config)
    assert np.isfinite(pretraining_targets(clips, config)).all()
    with pytest.raises(ValueError, match="norm_pix_loss=False needs num_channels=3"):
        pretraining_targets(clips, dataclasses.replace(config, norm_pix_loss=False))


def test_the_loss_is_the_mean_square_over_hidden_tokens():
    targets = np.asarray(pretraining_targets(CLIPS, TINY))
    hidden = targets[MASK].reshape(2, -1, TINY.tubelet_pixels)
    assert pretraining_loss(jnp.asarray(hidden), CLIPS, MASK, TINY) == 0.0
    loss = pretraining_loss(jnp.asarray(hidden + 0.5), CLIPS, MASK, TINY)
    assert loss == pytest.approx(0.25, rel=1e-5)


def test_no_gradient_flows_into_the_targets():
    predictions = jnp.zeros((2, int(MASK[0].sum()), TINY.tubelet_pixels))
    gradient = jax.grad(lambda clips: pretraining_loss(predictions, clips, MASK, TINY))(
        jnp.asarray(CLIPS)
    )
    assert not np.any(gradient)


def test_predictions_that_do_not_fit_the_mask_are_refused():
    with pytest.raises(ValueError, match="must hide 3 tokens a row"):
        pretraining_loss(jnp.zeros((2, 3, TINY.tubelet_pixels)), CLIPS, MASK, TINY)


# Classification.

LOGITS = jnp.asarray(np.random.default_rng(1).standard_normal((3, 4)) * 3, jnp.float32)
SOFT = np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]], np.float32)
WEIGHTS = np.array([0.5, 1.0, 2.0, 4.0], np.float32)


def log_softmax(logits) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_cross_entropy_with_soft_targets(problem_type):
    wanted = -(SOFT * log_softmax(LOGITS)).sum(-1).mean()
    loss = classification_loss(LOGITS, SOFT, problem_type=problem_type)
    assert loss == pytest.approx(wanted, rel=1e-6)


def test_class_weights_are_a_weighted_mean():
    hard = np.eye(4, dtype=np.float32)[[3, 0, 1]]
    log = log_softmax(LOGITS)
    wanted = -(4 * log[0, 3] + 0.5 * log[1, 0] + 1 * log[2, 1]) / 5.5
    assert classification_loss(LOGITS, hard, class_weights=WEIGHTS) == pytest.approx(wanted, 1e-6)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_several_labels_are_binary_each(weights):
    logits = np.asarray(LOGITS, np.float64)
    chance = 1 / (1 + np.exp(-logits))
    terms = -(SOFT * np.log(chance) + (1 - SOFT) * np.log(1 - chance))
    wanted = (terms * (1 if weights is None else weights)).mean()
    loss = classification_loss(
        LOGITS, SOFT, problem_type="multi_label_classification", class_weights=weights
    )
    assert loss == pytest.approx(wanted, rel=1e-5)


def test_binary_terms_far_out_are_finite():
    logits = jnp.array([[200.0, -200.0]])
    given = [
        float(classification_loss(logits, target, problem_type="multi_label_classification"))
        for target in (np.array([[1.0, 0.0]], np.float32), np.array([[0.0, 1.0]], np.float32))
    ]
    assert given == [0.0, 200.0]


def test_regression_is_the_mean_square():
    wanted = ((np.asarray(LOGITS) - SOFT) ** 2).mean()
    loss = classification_loss(LOGITS, SOFT, problem_type="regression")
    assert loss == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("targets", "options", "words"),
    [
        (SOFT[:, :3], {}, "[B, labels] = [3, 4], got [3, 3]"),
        (SOFT, {"problem_type": "ranking"}, "must be one of single_label_classification"),
        (SOFT, {"problem_type": "regression", "class_weights": WEIGHTS}, "need classes"),
    ],
)
def test_what_has_no_loss_is_refused(targets, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        classification_loss(LOGITS, targets, **options)


def test_balanced_weights_are_inverse_to_the_frequency():
    labels = np.array([0, 0, 0, 1, 3, 3])
    weights = balanced_weights(labels, 4)
    np.testing.assert_allclose(weights, [0.5, 1.5, 0.0, 0.75])
    assert weights.dtype == np.float32
    # Every class that occurs weighs the same in all.
    np.testing.assert_allclose(np.bincount(labels) * weights, [1.5, 1.5, 0.0, 1.5])
