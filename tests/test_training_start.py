"""What a run takes over from a checkpoint: here without any training."""

import dataclasses
import logging
import re

import jax
import numpy as np
import pytest

from tests.test_training import FINETUNE, MODEL
from videomae_jax.config import VideoMAEConfig
from videomae_jax.inference import Checkpoint
from videomae_jax.model import VideoClassifier, VideoPretrainer
from videomae_jax.processing import Preprocess
from videomae_jax.training.initial import draw_params
from videomae_jax.training.start import take_over

RECIPE = dataclasses.replace(FINETUNE, model=dataclasses.replace(MODEL, num_labels=3))


def pretrained(config: VideoMAEConfig) -> Checkpoint:
    model = VideoPretrainer(config, num_masked=2)
    return Checkpoint(
        model=model,
        params=draw_params(jax.random.key(7), model),
        config=config,
        labels=None,
        preprocess=Preprocess(),
        conversion={},
    )


@pytest.mark.parametrize("use_mean_pooling", [True, False])
def test_an_encoder_is_taken_with_or_without_the_norm_at_its_end(use_mean_pooling, caplog):
    # The published pre-trained models have one; a classifier of the mean has no place for it.
    given = pretrained(dataclasses.replace(MODEL, use_mean_pooling=use_mean_pooling))
    assert ("norm" in given.params["encoder"]) != use_mean_pooling
    drawn = draw_params(jax.random.key(8), VideoClassifier(RECIPE.model))
    with caplog.at_level(logging.INFO):
        taken = take_over(drawn, given, RECIPE, None, source="there")
    assert jax.tree.structure(taken) == jax.tree.structure(drawn)
    for name, subtree in taken["encoder"].items():
        jax.tree.map(np.testing.assert_array_equal, subtree, given.params["encoder"][name])
    assert "encoder taken from there; classifier, fc_norm new" in caplog.text
    assert ("encoder/norm" in caplog.text) != use_mean_pooling


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"qkv_bias": True}, "encoder/layers/attention/qkv/query_bias [2, 16]"),
        ({"layer_scale_init_value": 0.1}, "encoder/layers/scale_1/gamma [2, 16]"),
        ({"use_learnable_pos_emb": True}, "encoder/pos_embed [8, 16]"),
    ],
)
def test_an_encoder_with_weights_that_have_no_place_is_refused(fields, name):
    # Left out, they would make it another network; or all of it would be drawn anew.
    given = pretrained(dataclasses.replace(MODEL, **fields))
    model = dataclasses.replace(RECIPE.model, qkv_bias=False)
    drawn = draw_params(jax.random.key(8), VideoClassifier(model))
    recipe = dataclasses.replace(RECIPE, model=model)
    with pytest.raises(ValueError, match=re.escape(f"{name} where nothing is wanted")):
        take_over(drawn, given, recipe, None, source="there")
