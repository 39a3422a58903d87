"""The small model at its real size, 16 frames of 224 x 224, with 6 heads and with 16.

Run with `-s` to see the figures. One reference forward takes about a second on two cores.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from transformers.activations import ACT2FN

from tests.parity.reference import (
    assert_agree,
    build,
    config_of,
    distances,
    named,
    random_clips,
    reference_stages,
    relative_l2,
    translated,
)
from videomae_jax.config import VARIANTS
from videomae_jax.losses import pretraining_loss
from videomae_jax.masking import tube_mask
from videomae_jax.model import VideoClassifier, VideoPretrainer

TOLERANCE = 1e-5
SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "intermediate_size": 1536,
    "decoder_hidden_size": 192,
    "decoder_num_attention_heads": 3,
    "decoder_num_hidden_layers": 4,
    "decoder_intermediate_size": 768,
    "num_labels": 400,
}


def stages(model, variables, *inputs) -> dict:
    """The embedding and the output of every layer."""
    apply = jax.jit(functools.partial(model.apply, method="hidden_states"))
    return named(np.asarray(apply(variables, *inputs)))


def report(title: str, given: dict, wanted: dict) -> None:
    print(f"\n{title}", end="")
    assert_agree(distances(given, {stage: wanted[stage] for stage in given}), TOLERANCE)


@pytest.mark.parametrize("heads", [6, 16])
def test_classifier(heads):
    reference = build(VideoClassifier, **SMALL, num_attention_heads=heads)
    config = config_of(reference)
    assert config == dataclasses.replace(VARIANTS["small"], num_attention_heads=heads)
    model = VideoClassifier(config)
    clips = random_clips(config, batch=1)
    variables = {"params": translated(reference, model)}
    given = stages(model, variables, clips) | {"logits": jax.jit(model.apply)(variables, clips)}
    assert len(given) == 12 + len(["embedding", "logits"])
    wanted = reference_stages(reference, clips, with_maps=False)
    report(f"classifier, {heads} heads", given, wanted)

    for layer in reference.videomae.encoder.layer:
        layer.intermediate.intermediate_act_fn = ACT2FN["gelu_new"]
    wrong = reference_stages(reference, clips, with_maps=False)["logits"]
    print(f"tanh GELU: logits {relative_l2(given['logits'], wrong):.1e}")
    assert relative_l2(given["logits"], wrong) > TOLERANCE


@pytest.mark.parametrize("heads", [6, 16])
def test_attention_maps(heads):
    """Two layers of full width: the maps of all twelve take up to 2 GB a side."""
    fields = SMALL | {"num_hidden_layers": 2, "num_attention_heads": heads}
    reference = build(VideoClassifier, **fields)
    model = VideoClassifier(config_of(reference))
    clips = random_clips(model.config, batch=1)
    variables = {"params": translated(reference, model)}
    apply = jax.jit(functools.partial(model.apply, method="attention_maps"))
    given = {f"attention {layer}": value for layer, value in enumerate(apply(variables, clips))}
    assert [value.shape for value in given.values()] == 2 * [(1, heads, 1568, 1568)]
    report(f"{heads} heads", given, reference_stages(reference, clips))


def test_pretrainer():
    reference = build(VideoPretrainer, **SMALL, num_attention_heads=6)
    config = config_of(reference)
    clips = random_clips(config, batch=1)
    mask = np.array(tube_mask(jax.random.key(0), config))
    assert mask.sum() == 1408
    model = VideoPretrainer(config, num_masked=1408)
    variables = {"params": translated(reference, model)}
    predictions = jax.jit(model.apply)(variables, clips, mask)
    assert predictions.shape == (1, 1408, 1536)
    given = stages(model, variables, clips, mask) | {"predictions": predictions}
    for norm_pix_loss in (True, False):
        config = dataclasses.replace(config, norm_pix_loss=norm_pix_loss)
        given["loss"] = pretraining_loss(predictions, clips, mask, config)
        reference.config.norm_pix_loss = norm_pix_loss
        wanted = reference_stages(reference, clips, mask, with_maps=False)
        report(f"pre-trainer, norm_pix_loss={norm_pix_loss}", given, wanted)
