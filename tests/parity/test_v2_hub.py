"""Folders of VideoMAE V2 as on the hub: `model.` before every name, model_config, no head."""

import functools

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import videomae_jax as vm
from convert import job
from tests.folders import refusal, run, write_json
from tests.parity.original import Original
from tests.parity.reference import assert_agree, random_clips, relative_l2
from tests.parity.sources import clips_first, original_model, saved
from videomae_jax.processing import Preprocess

TOKENS = 36
MODEL_CONFIG = {
    "img_size": 12,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 0,
    "embed_dim": 42,
    "depth": 3,
    "num_heads": 6,
    "mlp_ratio": 50 / 42,
    "qkv_bias": True,
    "qk_scale": None,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "drop_path_rate": 0.0,
    "norm_layer": "nn.LayerNorm",
    "layer_norm_eps": 1e-6,
    "init_values": 0.0,
    "use_learnable_pos_emb": False,
    "tubelet_size": 2,
    "use_mean_pooling": True,
    "with_cp": False,
    "num_frames": 8,
    "cos_attn": False,
}
CONFIG = {
    "model_type": "VideoMAEv2_Base",
    "architectures": ["VideoMAEv2_Base"],
    "auto_map": {
        "AutoConfig": "modeling_config.VideoMAEv2Config",
        "AutoModel": "modeling_videomaev2.VideoMAEv2",
    },
    "transformers_version": "4.38.0",
    "use_cache": True,
}
PREPROCESSOR = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "VideoMAEImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 12},
    "crop_size": {"height": 12, "width": 12},
}
OPTIONS = {
    "published": ({}, {}),
    "cosine attention": ({"cos_attn": True}, {"cos_attn": True}),
    "layer scale": ({"layer_scale": True}, {"init_values": 0.1}),
    "learnt positions": ({"learnable_positions": TOKENS}, {"use_learnable_pos_emb": True}),
    "no mean pooling": ({"mean_pooling": False}, {"use_mean_pooling": False}),
    "with a head": ({"num_classes": 5}, {"num_classes": 5}),
}


@functools.cache
def base(name="published"):
    return original_model(Original(**({"num_classes": 0} | OPTIONS[name][0])))


def write_hub(folder, module=None, *, weights="model.safetensors", without=(), **entries):
    """A folder as on the hub; `entries` are set in its model_config."""
    folder.mkdir()
    state = base().state_dict() if module is None else module.state_dict()
    tensors = {f"model.{name}": value.clone() for name, value in state.items()}
    if weights.endswith(".bin"):
        saved(tensors, folder / weights)
    else:
        save_file(tensors, folder / weights, metadata={"format": "pt"})
    content = {k: v for k, v in (MODEL_CONFIG | entries).items() if k not in without}
    write_json(folder / "config.json", CONFIG | {"model_config": content})
    for code in ("modeling_config.py", "modeling_videomaev2.py"):
        # Remote code: it must never run, nor even be imported.
        (folder / code).write_text("raise RuntimeError('the code of the folder was executed')\n")
    return folder


def outputs(module, clips):
    with torch.inference_mode():
        return module(clips_first(clips)).numpy()


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("options", OPTIONS)
def test_it_computes_what_v2_does(tmp_path, options, weights):
    module, entries = base(options), OPTIONS[options][1]
    folder = write_hub(tmp_path / "hub", module, weights=weights, **entries)
    assert run(folder, tmp_path / "out", "--verify") == 0
    loaded = vm.load(tmp_path / "out")
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    wanted = outputs(module, clips)
    if options == "no mean pooling":
        # Neither fc_norm nor a head is there, so all tokens are given, normed.
        assert type(loaded.model).__name__ == "VideoEncoder"
        given = given[:, 0]
    assert_agree({options: relative_l2(given, wanted)})
    report = loaded.conversion
    assert report["source"]["layout"] == "videomae-v2-hub"
    assert report["network"]["overrides"] == {}
    assert report["tensors"]["ignored"] == []
    assert report["verification"]["agrees"]
    assert not list(tmp_path.rglob("__pycache__"))


def test_preprocessing_is_the_original_one_where_none_is_said(tmp_path):
    folder = write_hub(tmp_path / "hub")
    description = job.convert(folder).description
    assert description.preprocess == Preprocess.original((12, 12))
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    description = job.convert(folder).description
    assert description.preprocess.resize == "pil"
    assert description.conversion["preprocessing"]["source"] == "preprocessor_config.json"
    names = [file["name"] for file in description.conversion["source"]["files"]]
    assert names == ["model.safetensors", "config.json", "preprocessor_config.json"]
    assert not any("assumed" in text for text in description.conversion["warnings"])


def test_a_preprocessor_that_does_not_fit_is_refused(tmp_path, capsys):
    folder = write_hub(tmp_path / "hub")
    other = PREPROCESSOR | {"crop_size": {"height": 16, "width": 16}}
    write_json(folder / "preprocessor_config.json", other)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{folder / 'preprocessor_config.json'}: ")


def test_the_config_is_read_whole(tmp_path):
    folder = write_hub(tmp_path / "hub", layer_norm_eps=1e-3, drop_rate=0.25, attn_drop_rate=0.5)
    config = job.convert(folder).network.config
    assert (config.image_size, config.num_frames, config.num_tokens) == ((12, 12), 8, TOKENS)
    assert (config.layer_norm_eps, config.fc_norm_eps, config.decoder_norm_eps) == (1e-3,) * 3
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.5)
    assert (config.num_attention_heads, config.num_labels) == (6, 0)
    assert run(folder, tmp_path / "out", "--verify") == 0


def test_what_model_config_lacks_the_shapes_tell(tmp_path):
    left_out = {"embed_dim", "depth", "mlp_ratio", "in_chans", "patch_size", "qkv_bias", "cos_attn"}
    folder = write_hub(tmp_path / "hub", without=left_out)
    whole = write_hub(tmp_path / "whole")
    assert job.convert(folder).network.config == job.convert(whole).network.config


def test_the_user_is_asked_for_heads_that_nothing_tells(tmp_path, capsys):
    folder = write_hub(tmp_path / "hub", without={"num_heads"})
    (problem,) = refusal(capsys, tmp_path, folder)
    assert problem.endswith("so its heads can't be guessed; say --num-heads N")
    assert run(folder, "--num-heads", 6, "--verify") == 0


def test_what_the_user_says_wins(tmp_path):
    folder = write_hub(tmp_path / "hub")
    options = ["--num-heads", 3, "--image-size", "12x20", "--num-frames", 4]
    assert run(folder, tmp_path / "out", "--verify", *options) == 0
    config = vm.load(tmp_path / "out").config
    assert (config.num_attention_heads, config.image_size, config.num_frames) == (3, (12, 20), 4)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"embed_dim": 48}, "model_config has embed_dim 48, the tensors say 42"),
        ({"depth": 2}, "model_config has depth 2, the tensors say 3"),
        ({"in_chans": 1}, "model_config has in_chans 1, the tensors say 3"),
        ({"tubelet_size": 1}, "model_config has tubelet_size 1, the tensors say 2"),
        ({"patch_size": 6}, "model_config has patch_size 6, the tensors say 4"),
        ({"mlp_ratio": 4}, "model_config has mlp_ratio 4, the tensors say 1.19048"),
        ({"mlp_ratio": "4"}, "model_config has mlp_ratio '4', the tensors say 1.19048"),
        ({"qkv_bias": False}, "model_config has qkv_bias False, the tensors say True"),
        ({"use_mean_pooling": False}, "model_config has use_mean_pooling False, the tensors say"),
        ({"num_classes": 710}, "model_config has num_classes 710, the tensors say 0"),
        ({"cos_attn": True}, "model_config has cos_attn True, the tensors say False"),
        ({"use_learnable_pos_emb": True}, "model_config has use_learnable_pos_emb True, the"),
        ({"num_heads": 5}, "hidden_size 42 is not a multiple of num_attention_heads 5"),
        ({"num_heads": 0}, "num_attention_heads must be at least 1, got 0"),
        ({"num_heads": "6"}, "num_attention_heads must be int, got '6'"),
        ({"img_size": 14}, "image_size height 14 is not a multiple of patch_size height 4"),
        ({"img_size": 1 << 40}, "tokens, more than 131072"),
        ({"num_frames": 7}, "num_frames 7 is not a multiple of tubelet_size 2"),
        ({"all_frames": 16}, "model_config has all_frames 16 and num_frames 8"),
        ({"layer_norm_eps": -1.0}, "layer_norm_eps must be finite and not negative"),
        ({"layer_norm_eps": "tiny"}, "layer_norm_eps must be float, got 'tiny'"),
        ({"drop_rate": 1.5}, "hidden_dropout_prob must be in [0, 1), got 1.5"),
        ({"qk_scale": 0.1}, "model_config has qk_scale 0.1, which is not supported"),
        ({"norm_layer": "nn.RMSNorm"}, "model_config norm_layer must be nn.LayerNorm, got"),
        ({"norm_layer": ["LayerNorm"]}, "model_config norm_layer must be nn.LayerNorm, got"),
        ({"init_values": 0.1}, "model_config has init_values 0.1, the tensors hold no layer scale"),
        ({"embed_dims": 42}, "unknown model_config entry 'embed_dims' (did you mean 'embed_dim'?)"),
    ],
)
def test_contradictions_and_impossible_entries_are_one_line(tmp_path, capsys, entries, words):
    folder = write_hub(tmp_path / "hub", **entries)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{folder / 'config.json'}: ")
    assert words in problem


@pytest.mark.parametrize("content", [None, [], "base", 3])
def test_a_model_config_that_is_no_object_is_one_line(tmp_path, capsys, content):
    folder = write_hub(tmp_path / "hub")
    write_json(folder / "config.json", CONFIG | {"model_config": content})
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{folder / 'config.json'}: model_config ")


def test_layer_scale_that_model_config_denies_is_one_line(tmp_path, capsys):
    folder = write_hub(tmp_path / "hub", base("layer scale"), init_values=0.0)
    (problem,) = refusal(capsys, tmp_path, folder)
    assert problem.endswith("model_config has init_values 0.0, the tensors hold a layer scale")
    folder = write_hub(tmp_path / "other", base("layer scale"), init_values=1e-5)
    assert job.convert(folder).network.config.layer_scale_init_value == 1e-5


def test_heads_that_factors_of_cosine_attention_contradict_are_refused(tmp_path, capsys):
    folder = write_hub(tmp_path / "hub", base("cosine attention"), cos_attn=True, num_heads=3)
    (problem,) = refusal(capsys, tmp_path, folder)
    assert problem.startswith(f"{folder}: wrong shape: model.blocks.")
    assert "attn.scale [6, 1, 1] makes [6], " in problem


def test_a_ratio_in_a_few_digits_and_sizes_as_pairs_will_do(tmp_path):
    sizes = {"patch_size": [4, 4], "img_size": [12, 12], "mlp_ratio": 1.19}
    folder, plain = write_hub(tmp_path / "hub", **sizes), write_hub(tmp_path / "plain")
    assert job.convert(folder).network.config == job.convert(plain).network.config


def test_an_eps_of_zero_is_an_eps(tmp_path):
    folder = write_hub(tmp_path / "hub", layer_norm_eps=0)
    assert run(folder, tmp_path / "out", "--verify") == 0
    assert vm.load(tmp_path / "out").config.layer_norm_eps == 0.0


def test_missing_and_additional_tensors_are_named(tmp_path, capsys):
    module = base()
    folder = write_hub(tmp_path / "hub", module)
    tensors = {f"model.{name}": value for name, value in module.state_dict().items()}
    del tensors["model.blocks.1.norm2.bias"]
    tensors["model.pooler.weight"] = torch.zeros(3)
    save_file(tensors, folder / "model.safetensors")
    problems = refusal(capsys, tmp_path, folder)
    assert any("model.pooler.weight" in problem for problem in problems)
    assert any("never filled: encoder/layers/norm_2/bias" in problem for problem in problems)


def test_without_its_config_it_is_an_original_file(tmp_path):
    folder = write_hub(tmp_path / "hub")
    wanted = job.convert(folder)
    (folder / "config.json").unlink()
    sizes = {"num_attention_heads": 6, "image_size": (12, 12), "num_frames": 8}
    given = job.convert(folder, job.Request(overrides=sizes))
    assert given.network.layout.name == "original"
    assert given.network.config == wanted.network.config
    jax.tree.map(np.testing.assert_array_equal, given.params, wanted.params)
