import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY, random_clips
from videomae_jax.losses import pretraining_loss, pretraining_targets
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
