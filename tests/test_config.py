import dataclasses
import json

import numpy as np
import pytest

from tests.configs import TINY
from videomae_jax.config import HIDDEN_ACTS, VARIANTS, VideoMAEConfig
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params
from videomae_jax.tokens import sinusoid_table

# What a published config.json looks like: transformers 4 wrote it.
PUBLISHED = {
    "architectures": ["VideoMAEForVideoClassification"],
    "attention_probs_dropout_prob": 0.0,
    "decoder_hidden_size": 192,
    "decoder_intermediate_size": 768,
    "decoder_num_attention_heads": 3,
    "decoder_num_hidden_layers": 12,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 384,
    "id2label": {"0": "abseiling", "1": "air drumming", "2": "answering questions"},
    "image_size": 224,
    "initializer_range": 0.02,
    "intermediate_size": 1536,
    "label2id": {"abseiling": 0, "air drumming": 1, "answering questions": 2},
    "layer_norm_eps": 1e-12,
    "model_type": "videomae",
    "norm_pix_loss": True,
    "num_attention_heads": 16,
    "num_channels": 3,
    "num_frames": 16,
    "num_hidden_layers": 12,
    "patch_size": 16,
    "problem_type": "single_label_classification",
    "qkv_bias": True,
    "torch_dtype": "float32",
    "transformers_version": "4.24.0",
    "tubelet_size": 2,
    "use_mean_pooling": True,
}


@pytest.mark.parametrize(
    ("name", "parameters", "heads", "head_dim"),
    [
        ("small", 22_033_936, 6, 64),
        ("base", 86_534_800, 12, 64),
        ("large", 304_270_736, 16, 64),
        ("huge", 632_119_440, 16, 80),
    ],
)
def test_variants_have_the_published_sizes(name, parameters, heads, head_dim):
    config = VARIANTS[name]
    leaves = _leaves(abstract_params(VideoClassifier(config)))
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves) == parameters
    assert (config.num_attention_heads, config.head_dim) == (heads, head_dim)
    assert config.num_tokens == 8 * 14 * 14
    assert config.tubelet_pixels == 2 * 16 * 16 * 3


def test_a_giant_counts_what_hand_arithmetic_does():
    config = VARIANTS["giant"]
    assert (config.head_dim, config.num_tokens, config.tubelet_pixels) == (88, 2048, 1176)
    width, mlp, labels = 1408, 6144, 400
    block = (
        *(2 * width, width * 3 * width, 2 * width, width * width + width),
        *(2 * width, width * mlp + mlp, mlp * width + width),
    )
    encoder = 1176 * width + width + 40 * sum(block)
    head = 2 * width + labels * width + labels
    assert encoder + head == 1_012_174_352
    assert _count(VideoClassifier(config)) == encoder + head
    decoder_block = (
        *(2 * 512, 512 * 3 * 512, 2 * 512, 512 * 512 + 512),
        *(2 * 512, 512 * 2048 + 2048, 2048 * 512 + 512),
    )
    # The bridge, the mask token, the blocks, the norm and the head.
    decoder = width * 512 + 512 + 4 * sum(decoder_block) + 2 * 512 + 512 * 1176 + 1176
    pretrainer = VideoPretrainer(dataclasses.replace(config, use_mean_pooling=False))
    assert _count(pretrainer) == encoder + 2 * width + decoder


@pytest.mark.parametrize(
    ("option", "added", "added_to_the_decoder"),
    [
        # A factor for each head of each layer.
        ({"cos_attn": True}, 12 * 6, 4 * 3),
        # Two factors for each column of each layer.
        ({"layer_scale_init_value": 0.1}, 12 * 2 * 384, 4 * 2 * 192),
        # A row for each token; the decoder's are computed always.
        ({"use_learnable_pos_emb": True}, 1568 * 384, 0),
    ],
)
def test_options_count_what_hand_arithmetic_does(option, added, added_to_the_decoder):
    for model, more in ((VideoClassifier, added), (VideoPretrainer, added + added_to_the_decoder)):
        small = VARIANTS["small"]
        with_option = dataclasses.replace(small, **option)
        assert _count(model(with_option)) - _count(model(small)) == more


def test_a_published_config_is_read():
    config = VideoMAEConfig.from_hf(PUBLISHED)
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (384, 16, 24)
    assert config.num_labels == 3
    assert config.image_size == (224, 224)
    assert (config.layer_norm_eps, config.fc_norm_eps, config.decoder_norm_eps) == (
        1e-12,
        1e-5,
        1e-5,
    )


def test_missing_entries_get_the_defaults_of_transformers():
    assert VideoMAEConfig.from_hf({}) == VideoMAEConfig()
    assert VideoMAEConfig().num_labels == 2


def test_both_spellings_of_the_bias_switch():
    assert not VideoMAEConfig.from_hf({"qv_bias": False}).qkv_bias
    assert not VideoMAEConfig.from_hf({"qkv_bias": False}).qkv_bias
    assert not VideoMAEConfig.from_hf({"qkv_bias": False, "qv_bias": False}).qkv_bias


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hiden_size": 384}, ["hiden_size", "did you mean 'hidden_size'"]),
        ({"qkv_bias": True, "qv_bias": False}, ["qv_bias", "contradicts"]),
        ({"num_labels": 5, "id2label": {"0": "a"}}, ["num_labels 5", "id2label"]),
        ({"id2label": ["a", "b"]}, ["id2label", "list"]),
        ({"model_type": "vit"}, ["model_type", "vit"]),
        ({"pruned_heads": {"0": [1]}}, ["pruned_heads"]),
        ({"hidden_act": "prelu"}, ["hidden_act", "prelu", "quick_gelu"]),
        ({"hidden_act": None}, ["hidden_act", "None"]),
        ({"hidden_size": 100}, ["hidden_size 100", "num_attention_heads 12"]),
        ({"num_frames": 15}, ["num_frames 15", "tubelet_size 2"]),
        ({"image_size": [224, 230]}, ["image_size width 230", "patch_size width 16"]),
        ({"image_size": [224, 224, 3]}, ["image_size", "[height, width]"]),
        ({"image_size": "224"}, ["image_size", "'224'"]),
        ({"num_frames": 2_000_000}, ["num_frames 2000000", "196000000 tokens"]),
        ({"patch_size": 0}, ["patch_size", "at least 1"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers", "at least 1"]),
        ({"num_hidden_layers": 1.5}, ["num_hidden_layers", "int", "1.5"]),
        ({"num_channels": True}, ["num_channels", "int", "True"]),
        ({"use_mean_pooling": 1}, ["use_mean_pooling", "bool", "1"]),
        ({"layer_norm_eps": float("nan")}, ["layer_norm_eps", "nan"]),
        ({"layer_norm_eps": "1e-12"}, ["layer_norm_eps", "'1e-12'"]),
        ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob", "[0, 1)"]),
        ({"problem_type": "guessing"}, ["problem_type", "guessing"]),
        ({"num_labels": -1}, ["num_labels", "-1"]),
    ],
)
def test_what_no_network_can_be_built_from_is_refused_by_name(fields, words):
    with pytest.raises(ValueError) as error:
        VideoMAEConfig.from_hf(fields)
    for word in words:
        assert word in str(error.value)


def test_dict_round_trip_through_json():
    written = json.loads(json.dumps(TINY.to_dict()))
    assert VideoMAEConfig.from_dict(written) == TINY
    assert hash(VideoMAEConfig.from_dict(written)) == hash(TINY)


def test_from_dict_is_strict():
    fields = TINY.to_dict()
    with pytest.raises(ValueError, match="unknown config entry 'colour'"):
        VideoMAEConfig.from_dict(fields | {"colour": 3})
    del fields["norm_pix_loss"]
    with pytest.raises(ValueError, match="lacks norm_pix_loss"):
        VideoMAEConfig.from_dict(fields)


def test_derived_sizes():
    assert TINY.grid == (3, 3, 5)
    assert TINY.num_tokens == 45
    assert TINY.tubelet_pixels == 2 * 4 * 4 * 3
    assert TINY.head_dim == 12
    assert TINY.clip_shape == (6, 12, 20, 3)


def test_other_sizes_leave_the_parameters_alone():
    longer = dataclasses.replace(TINY, num_frames=8, image_size=(16, 24))
    shapes = [
        [leaf.shape for leaf in _leaves(abstract_params(VideoClassifier(config)))]
        for config in (TINY, longer)
    ]
    assert shapes[0] == shapes[1]
    assert sinusoid_table(longer.num_tokens, 24).shape == (4 * 4 * 6, 24)


def _count(model):
    return sum(int(np.prod(leaf.shape)) for leaf in _leaves(abstract_params(model)))


def _leaves(tree):
    import jax

    return jax.tree.leaves(tree)


def test_every_activation_has_its_name_among_plain_data():
    from videomae_jax.activations import ACTIVATIONS

    assert tuple(ACTIVATIONS) == HIDDEN_ACTS
