"""Original .pth files, in every wrapping, against the original model in plain torch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch

import videomae_jax as vm
from convert import job
from convert.settings import ORIGINAL_EPS
from tests.folders import run
from tests.parity.reference import TINY, random_clips, random_mask, relative_l2
from tests.parity.sources import (
    HEADS,
    SIZES,
    Original,
    OriginalPretrainer,
    clips_first,
    original_model,
    save_folder,
    saved,
    training_file,
    transformers_twin,
)
from tests.reports import problems

OVERRIDES = {
    "image_size": (12, 20),
    "num_frames": 8,
    "num_attention_heads": 6,
    "decoder_num_attention_heads": 2,
}
MODELS = {
    "fine-tuned": Original,
    "first token": functools.partial(Original, mean_pooling=False),
    "encoder": functools.partial(Original, num_classes=None, mean_pooling=False),
    "pooled encoder": functools.partial(Original, num_classes=None),
    "pre-training": OriginalPretrainer,
}


@functools.cache
def original(name):
    return original_model(MODELS[name]())


def params_of(path):
    return job.convert(path, job.Request(overrides=OVERRIDES)).params


def assert_same(given, wanted):
    assert jax.tree.structure(given) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, given, wanted)


def logits(model, clips, *masks):
    with torch.inference_mode():
        return model(clips_first(clips), *map(torch.from_numpy, masks)).numpy()


@pytest.mark.parametrize("name", MODELS)
def test_it_computes_what_the_original_does(tmp_path, name):
    file = saved(training_file(original(name).state_dict()), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *SIZES, *HEADS) == 0
    loaded = vm.load(tmp_path / "out")
    clips = random_clips(loaded.config)
    masks = [random_mask(loaded.config)] if name == "pre-training" else []
    given = loaded.model.apply({"params": loaded.params}, clips, *masks)
    assert relative_l2(given, logits(original(name), clips, *masks)) < 2e-6
    report = loaded.conversion
    assert problems(report) == []
    assert report["source"]["layout"] == "original"
    assert report["source"]["entry"] == "model"
    left = [entry["name"] for entry in report["source"]["ignored_entries"]]
    assert left == ["args", "epoch", "optimizer", "scaler"]
    assert report["verification"]["agrees"]


@pytest.mark.parametrize("name", MODELS)
def test_the_same_weights_in_hugging_face_layout_give_the_same_tree(tmp_path, name):
    file = saved(original(name).state_dict(), tmp_path / "model.pth")
    given = job.convert(file, job.Request(overrides=OVERRIDES))
    twin = transformers_twin(original(name))
    wanted = job.convert(save_folder(twin, tmp_path / "twin"))
    assert_same(given.params, wanted.params)
    assert given.network.architecture == wanted.network.architecture
    # The two configs differ where the code bases do, and nowhere else.
    fields = {"layer_norm_eps", "fc_norm_eps", "decoder_norm_eps"}
    if name != "pre-training":
        fields |= {key for key in TINY if key.startswith("decoder")}
    if name not in ("fine-tuned", "first token"):
        fields.add("num_labels")
    ours, theirs = (found.network.config.to_dict() for found in (given, wanted))
    assert {key for key in ours if ours[key] != theirs[key]} <= fields


def deepspeed(weights):
    """DeepSpeed keeps the weights under `module`, and much beside."""
    return training_file(weights, entry="module") | {
        "buffer_names": [],
        "dp_world_size": 64,
        "lr_scheduler": None,
        "param_shapes": None,
    }


def prefixed(prefix):
    return lambda weights: {prefix + name: value for name, value in weights.items()}


WRAPPINGS = {
    "bare": dict,
    "model": training_file,
    "module": deepspeed,
    "model with module": lambda weights: training_file(prefixed("module.")(weights)),
    "data parallel": prefixed("module."),
    "backbone": prefixed("backbone."),
    "compiled": prefixed("_orig_mod."),
    "encoder": prefixed("encoder."),
    "data parallel encoder": prefixed("encoder.module."),
    "Lightning": prefixed("model."),
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapping_holds_the_same(tmp_path, wrapping):
    weights = original("fine-tuned").state_dict()
    wanted = params_of(saved(weights, tmp_path / "plain.pth"))
    file = saved(WRAPPINGS[wrapping](weights), tmp_path / "model.pth")
    assert_same(params_of(file), wanted)
    assert run(file, "--verify", *SIZES, *HEADS) == 0


@pytest.mark.parametrize("wrapping", ["bare", "module", "data parallel"])
def test_every_wrapping_of_pretraining_weights(tmp_path, wrapping):
    weights = original("pre-training").state_dict()
    wanted = params_of(saved(weights, tmp_path / "plain.pth"))
    file = saved(WRAPPINGS[wrapping](weights), tmp_path / "model.pth")
    assert_same(params_of(file), wanted)


def test_what_is_no_tensor_is_said_to_be_ignored(tmp_path):
    weights = original("fine-tuned").state_dict()
    file = saved({"model": weights | {"step": 3}, "model_ema": weights}, tmp_path / "model.pth")
    report = job.convert(file, job.Request(overrides=OVERRIDES)).description.conversion
    assert report["source"]["ignored_entries"] == [
        {"name": "model_ema", "reason": "averaged weights; --weights ema takes them"},
        {"name": "step", "reason": "how far training had come"},
    ]
    assert report["tensors"]["read"] == len(weights)


def test_the_format_before_zip_is_read(tmp_path):
    weights = original("fine-tuned").state_dict()
    wanted = params_of(saved(weights, tmp_path / "zip.pth"))
    old = saved(training_file(weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert old.read_bytes()[:2] != b"PK"
    assert_same(params_of(old), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path, dtype):
    weights = {name: value.to(dtype) for name, value in original("fine-tuned").state_dict().items()}
    wide = {name: value.float() for name, value in weights.items()}
    wanted = params_of(saved(wide, tmp_path / "wide.pth"))
    assert_same(params_of(saved(weights, tmp_path / "half.pth")), wanted)


def test_weights_that_share_memory_or_run_backwards_are_read(tmp_path):
    weights = original("fine-tuned").state_dict()
    wanted = params_of(saved(weights, tmp_path / "plain.pth"))
    for name in ("head.weight", "blocks.1.mlp.fc1.weight"):
        # Column-major, and inside a larger storage.
        held = torch.zeros(weights[name].shape[1] + 5, weights[name].shape[0])
        held[2:-3] = weights[name].T
        weights[name] = held[2:-3].T
    assert not weights["head.weight"].is_contiguous()
    assert_same(params_of(saved(weights, tmp_path / "views.pth")), wanted)


def test_a_whole_file_is_read_when_it_is_mapped_anew(tmp_path, monkeypatch):
    opened = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **o: opened.append(o) or load(*a, **o))
    file = saved(original("fine-tuned").state_dict(), tmp_path / "model.pth")
    params_of(file)
    # Each sixteenth of what was read, so that no more than that stays in memory.
    assert 8 <= len(opened) <= 17
    assert all(options["weights_only"] is True for options in opened)


def test_labels_for_the_classes(tmp_path):
    file = saved(original("fine-tuned").state_dict(), tmp_path / "model.pth")
    names = [f"class {index}" for index in range(TINY["num_labels"])]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    options = ["--labels", tmp_path / "labels.txt"]
    assert run(file, tmp_path / "out", *SIZES, *HEADS, *options) == 0
    assert list(vm.load(tmp_path / "out").labels.names) == names


def test_a_vit_s_has_the_published_sizes(tmp_path):
    model = original_model(
        Original(width=384, layers=1, heads=6, hidden=1536, tubelet=(2, 16, 16), num_classes=400)
    )
    file = saved({"module": model.state_dict()}, tmp_path / "model.pth")
    config = job.convert(file).network.config
    assert (config.num_attention_heads, config.head_dim) == (6, 64)
    assert (config.image_size, config.num_frames, config.patch_size) == ((224, 224), 16, (16, 16))
    small = vm.VARIANTS["small"]
    assert config == dataclasses.replace(
        small,
        num_hidden_layers=1,
        layer_norm_eps=1e-6,
        fc_norm_eps=1e-6,
        decoder_norm_eps=1e-6,
        # A fine-tuned file has no decoder, so that of the defaults stands there.
        **{
            name: getattr(vm.VideoMAEConfig(), name)
            for name in small.to_dict()
            if name.startswith("decoder") and name != "decoder_norm_eps"
        },
    )
    assert run(file, tmp_path / "out", "--image-size", "32x48", "--num-frames", 4) == 0
    loaded = vm.load(tmp_path / "out")
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    assert relative_l2(given, logits(model, clips)) < 2e-6


# LayerNorm's eps shows where the variance is of its size; a random clip never gets there.

FAINT = 1e-3


@functools.cache
def faint_model():
    """One token whose position is taken away again, so that a faint clip gives a faint token."""
    model = original_model(Original(num_classes=9))
    with torch.no_grad():
        model.patch_embed.proj.bias.zero_()
        model.patch_embed.proj.bias[1::2] -= 1.0
        for block in model.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.mul_(FAINT)
                layer.bias.mul_(FAINT)
    return model


@functools.cache
def faint_pretrainer():
    """A hidden token that is its own position's opposite."""
    model = original_model(OriginalPretrainer())
    with torch.no_grad():
        model.mask_token.mul_(FAINT)
        angles = torch.tensor([1 / 10000 ** (2 * (j // 2) / 22) for j in range(22)])
        model.mask_token[..., 0::2] -= angles[0::2].sin()
        model.mask_token[..., 1::2] -= angles[1::2].cos()
        for block in model.decoder.blocks:
            for layer in (block.attn.proj, block.mlp.fc2):
                layer.weight.mul_(FAINT)
                layer.bias.mul_(FAINT)
    return model


def faint_conversion(tmp_path, model, *, image_size):
    file = saved(model.state_dict(), tmp_path / "model.pth")
    sizes = {"image_size": image_size, "num_frames": 2}
    return job.convert(file, job.Request(overrides=OVERRIDES | sizes))


def apply_with(conversion, *inputs, **eps):
    config = dataclasses.replace(conversion.network.config, **eps)
    return type(conversion.model)(config).apply({"params": conversion.params}, *inputs)


def test_eps_is_the_original_ones_in_every_norm(tmp_path):
    assert ORIGINAL_EPS == 1e-6
    found = faint_conversion(tmp_path, faint_model(), image_size=(4, 4))
    config = found.network.config
    assert (config.layer_norm_eps, config.fc_norm_eps, config.decoder_norm_eps) == (1e-6,) * 3
    clips = FAINT * random_clips(config)
    wanted = logits(faint_model(), clips)
    assert relative_l2(apply_with(found, clips), wanted) < 1e-5
    # Each of them matters here, and transformers' values most of all.
    assert relative_l2(apply_with(found, clips, layer_norm_eps=1e-12), wanted) > 1e-4
    assert relative_l2(apply_with(found, clips, fc_norm_eps=1e-5), wanted) > 1e-2
    twin = transformers_twin(faint_model(), image_size=4, num_frames=2)
    other = job.convert(save_folder(twin, tmp_path / "twin")).network.config
    assert (other.layer_norm_eps, other.fc_norm_eps, other.decoder_norm_eps) == (1e-12, 1e-5, 1e-5)
    eps = {"layer_norm_eps": 1e-12, "fc_norm_eps": 1e-5}
    with torch.inference_mode():
        theirs = twin(clips_first(clips).transpose(1, 2)).logits.numpy()
    assert relative_l2(apply_with(found, clips, **eps), theirs) < 1e-5
    assert relative_l2(theirs, wanted) > 1e-2


def test_eps_of_the_decoder_is_the_original_one(tmp_path):
    found = faint_conversion(tmp_path, faint_pretrainer(), image_size=(4, 8))
    clips, mask = random_clips(found.network.config), np.array([[False, True]] * 2)
    wanted = logits(faint_pretrainer(), clips, mask)
    assert relative_l2(apply_with(found, clips, mask), wanted) < 1e-5
    assert relative_l2(apply_with(found, clips, mask, decoder_norm_eps=1e-5), wanted) > 1e-2
