"""Dual masking: what the decoder predicts is said by a mask of its own (VideoMAE V2)."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY, random_clips, random_params
from videomae_jax.losses import pretraining_loss, pretraining_targets
from videomae_jax.masking import running_cell_mask, tube_mask
from videomae_jax.model import VideoPretrainer, abstract_params

CONFIG = dataclasses.replace(TINY, image_size=(16, 24))
CLIPS = random_clips(CONFIG)
MASK = np.array(tube_mask(jax.random.key(1), CONFIG, batch=2, ratio=0.6))
LEFT_OUT = np.array(running_cell_mask(jax.random.key(2), CONFIG, batch=2))
MODEL = VideoPretrainer(CONFIG)
WEIGHTS = {"params": random_params(abstract_params(MODEL))}


def test_the_decoder_predicts_what_its_mask_leaves():
    predictions = MODEL.apply(WEIGHTS, CLIPS, MASK, LEFT_OUT)
    assert predictions.shape == (2, 36, CONFIG.tubelet_pixels)
    compiled = MODEL.clone(num_masked=int(MASK[0].sum()), num_decoded=36)
    np.testing.assert_allclose(
        jax.jit(compiled.apply)(WEIGHTS, CLIPS, MASK, LEFT_OUT), predictions, rtol=0, atol=1e-5
    )


def test_to_leave_the_hidden_ones_is_the_plain_call():
    np.testing.assert_array_equal(
        MODEL.apply(WEIGHTS, CLIPS, MASK, ~MASK), MODEL.apply(WEIGHTS, CLIPS, MASK)
    )
    predictions = MODEL.apply(WEIGHTS, CLIPS, MASK)
    assert pretraining_loss(predictions, CLIPS, MASK, CONFIG, decoder_mask=~MASK) == pytest.approx(
        float(pretraining_loss(predictions, CLIPS, MASK, CONFIG)), rel=1e-6
    )


def test_only_what_the_encoder_did_not_see_counts():
    """sum(mse * hidden) / sum(hidden) over the predicted tokens of the batch."""
    mask = MASK.copy()
    mask[1] = ~mask[1]
    predictions = np.random.default_rng(0).standard_normal((2, 36, CONFIG.tubelet_pixels))
    predictions = predictions.astype(np.float32)
    targets = np.asarray(pretraining_targets(CLIPS, CONFIG), np.float64)
    total = count = 0.0
    for row in range(2):
        for position, token in enumerate(np.flatnonzero(~LEFT_OUT[row])):
            if mask[row, token]:
                total += np.mean((predictions[row, position] - targets[row, token]) ** 2)
                count += 1
    assert 0 < count < 72
    loss = pretraining_loss(jnp.asarray(predictions), CLIPS, mask, CONFIG, decoder_mask=LEFT_OUT)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_decoder_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=re.escape("decoder_mask must be bool [B, L] = [2, 72]")):
        MODEL.apply(WEIGHTS, CLIPS, MASK, LEFT_OUT[0])
    uneven = LEFT_OUT.copy()
    uneven[0, np.flatnonzero(~uneven[0])[0]] = True
    with pytest.raises(ValueError, match="same number"):
        MODEL.apply(WEIGHTS, CLIPS, MASK, uneven)
    with pytest.raises(ValueError, match="must hide 32 tokens a row, got 36"):
        MODEL.clone(num_decoded=40).apply(WEIGHTS, CLIPS, MASK, LEFT_OUT)
