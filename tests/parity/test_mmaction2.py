"""mmaction2's .pth files against the original model in plain torch and transformers' model."""

import functools

import jax
import numpy as np
import pytest
import torch

import videomae_jax as vm
from convert import job
from tests.folders import refusal, run
from tests.parity.original import EPS, Original, positions
from tests.parity.reference import assert_agree, random_clips, relative_l2, to_torch
from tests.parity.sources import clips_first, original_model, saved, transformers_twin
from videomae_jax.processing import Preprocess

# Square frames, whose size the number of positions tells: 4 x 3 x 3 tokens.
TOKENS = 36
FRAMES = ["--num-frames", 8]
HEADS = ["--num-heads", 6]
OVERRIDES = {"num_frames": 8, "num_attention_heads": 6}
SINUSOIDS = "the table of sinusoids, which is computed"


@functools.cache
def original(**options):
    return original_model(Original(**options))


def mmaction2_names(module, *, stored=None):
    """The module's weights as mmaction2 names them, with its buffer of positions."""
    weights = {}
    for name, value in module.state_dict().items():
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        name = name.replace(".mlp.fc1.", ".mlp.layers.0.0.").replace(".mlp.fc2.", ".mlp.layers.1.")
        head = name.startswith("head.")
        name = name.replace("head.", "cls_head.fc_cls.") if head else f"backbone.{name}"
        weights[name] = value
    table = positions(TOKENS, 42)[None] if stored is None else stored
    return weights | {"backbone.pos_embed": table}


def checkpoint(weights, *, entry="state_dict"):
    """What mmengine saves around the weights."""
    meta = {"mmaction_version": "1.2.0", "time": "20230101_120000", "epoch": 75, "seed": 0}
    return {"meta": meta, entry: weights, "message_hub": {"log_scalars": {}}}


WRAPPINGS = {
    "bare": dict,
    "state_dict": checkpoint,
    "model": functools.partial(checkpoint, entry="model"),
    "data parallel": lambda weights: {f"module.{name}": v for name, v in weights.items()},
}


def logits(module, clips):
    with torch.inference_mode():
        return module(clips_first(clips)).numpy()


def transformers_logits(module, clips):
    """Those of transformers' model with the same weights, and the original's eps in every norm."""
    twin = transformers_twin(module, image_size=12)
    for part in twin.modules():
        if isinstance(part, torch.nn.LayerNorm):
            part.eps = EPS
    with torch.inference_mode():
        return twin(to_torch(clips)).logits.numpy()


def distances(folder, module):
    """How far a converted directory's logits are from both references'."""
    loaded = vm.load(folder)
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    return {
        "plain torch": relative_l2(given, logits(module, clips)),
        "transformers": relative_l2(given, transformers_logits(module, clips)),
    }


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_it_computes_what_the_original_does(tmp_path, wrapping):
    weights = WRAPPINGS[wrapping](mmaction2_names(original()))
    file = saved(weights, tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *FRAMES, *HEADS) == 0
    assert_agree(distances(tmp_path / "out", original()))
    loaded = vm.load(tmp_path / "out")
    assert loaded.config.image_size == (12, 12)
    eps = (loaded.config.layer_norm_eps, loaded.config.fc_norm_eps, loaded.config.decoder_norm_eps)
    assert eps == (EPS,) * 3
    assert loaded.preprocess == Preprocess.original((12, 12))
    report = loaded.conversion
    assert report["source"]["layout"] == "mmaction2"
    wrapped = wrapping in ("state_dict", "model")
    assert report["source"]["entry"] == (wrapping if wrapped else None)
    left = [entry["name"] for entry in report["source"]["ignored_entries"]]
    assert left == (["message_hub", "meta"] if wrapped else [])
    assert report["verification"]["agrees"]
    (ignored,) = report["tensors"]["ignored"]
    assert ignored["name"].endswith("backbone.pos_embed")
    assert ignored["reason"].startswith(SINUSOIDS)


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_it_gives_the_tree_of_the_original_layout(tmp_path, wrapping):
    wanted = saved(original().state_dict(), tmp_path / "original.pth")
    wanted = job.convert(wanted, job.Request(overrides=OVERRIDES | {"image_size": (12, 12)}))
    weights = WRAPPINGS[wrapping](mmaction2_names(original()))
    given = job.convert(saved(weights, tmp_path / "model.pth"), job.Request(overrides=OVERRIDES))
    assert given.network.config == wanted.network.config
    jax.tree.map(np.testing.assert_array_equal, given.params, wanted.params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, dtype):
    module = original_model(Original())
    half = {name: value.to(dtype) for name, value in mmaction2_names(module).items()}
    module.load_state_dict({k: value.to(dtype).float() for k, value in module.state_dict().items()})
    file = saved({"model": half}, tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *FRAMES, *HEADS) == 0
    assert_agree(distances(tmp_path / "out", module))
    # Rounded sinusoids are sinusoids still: those that are computed are better.
    (ignored,) = vm.load(tmp_path / "out").conversion["tensors"]["ignored"]
    assert ignored["reason"].startswith(SINUSOIDS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_learnt_positions_are_kept(tmp_path, dtype):
    module = original_model(Original(learnable_positions=TOKENS))
    learnt = module.state_dict()["pos_embed"].to(dtype)
    with torch.no_grad():
        module.pos_embed.copy_(learnt)
    file = saved(mmaction2_names(module, stored=learnt), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *FRAMES, *HEADS) == 0
    loaded = vm.load(tmp_path / "out")
    assert loaded.config.use_learnable_pos_emb
    assert loaded.conversion["tensors"]["ignored"] == []
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    assert_agree({str(dtype): relative_l2(given, logits(module, clips))})


def test_positions_that_learnt_a_little_are_learnt(tmp_path):
    learnt = positions(TOKENS, 42)[None]
    learnt[0, 7, 5] += 1e-4
    file = saved(mmaction2_names(original(), stored=learnt), tmp_path / "model.pth")
    found = job.convert(file, job.Request(overrides=OVERRIDES))
    assert found.network.config.use_learnable_pos_emb
    np.testing.assert_array_equal(found.params["encoder"]["pos_embed"], learnt[0].numpy())


def test_positions_that_are_not_finite_are_refused(tmp_path, capsys):
    stored = positions(TOKENS, 42)[None]
    stored[0, 0, 0] = float("nan")
    file = saved(mmaction2_names(original(), stored=stored), tmp_path / "model.pth")
    (problem,) = refusal(capsys, tmp_path, file, tmp_path / "out", *FRAMES, *HEADS)
    assert problem == f"{file}: not finite: backbone.pos_embed holds NaN or Inf"


@pytest.mark.parametrize("shape", [(), (42,), (TOKENS, 42), (2, TOKENS, 42), (1, TOKENS, 41)])
def test_positions_of_another_shape_are_refused(tmp_path, capsys, shape):
    file = saved(mmaction2_names(original(), stored=torch.ones(shape)), tmp_path / "model.pth")
    problems = refusal(capsys, tmp_path, file, *FRAMES, *HEADS, "--image-size", 12)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: wrong shape: backbone.pos_embed {list(shape)} ")


def test_positions_of_another_size_are_asked_about(tmp_path, capsys):
    stored = positions(35, 42)[None]
    file = saved(mmaction2_names(original(), stored=stored), tmp_path / "model.pth")
    (problem,) = refusal(capsys, tmp_path, file, *FRAMES, *HEADS)
    assert problem.startswith(f"{file}: 35 positions are no square frames of 8 frames in tubelets")
    assert problem.endswith("; say --image-size HxW and --num-frames T")
    assert run(file, *FRAMES, *HEADS, "--image-size", "12x20", "--verify") == 0


def test_other_frames_than_it_was_trained_on(tmp_path):
    # Sinusoids are computed for as many tokens as there are.
    file = saved(mmaction2_names(original()), tmp_path / "model.pth")
    options = ["--image-size", "8x20", "--num-frames", 4]
    assert run(file, tmp_path / "out", "--verify", *HEADS, *options) == 0
    loaded = vm.load(tmp_path / "out")
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    assert_agree({"logits": relative_l2(given, logits(original(), clips))})


def test_a_detection_model_without_pooling(tmp_path):
    module = original(mean_pooling=False, num_classes=None)
    weights = mmaction2_names(module) | {
        "roi_head.bbox_head.fc_cls.weight": torch.ones(81, 42),
        "roi_head.bbox_head.fc_cls.bias": torch.ones(81),
        "data_preprocessor.mean": torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1, 1),
        "data_preprocessor.std": torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1, 1),
    }
    assert "backbone.norm.weight" in weights
    file = saved({"model": weights}, tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *FRAMES, *HEADS) == 0
    loaded = vm.load(tmp_path / "out")
    assert type(loaded.model).__name__ == "VideoEncoder"
    clips = random_clips(loaded.config)
    given = loaded.model.apply({"params": loaded.params}, clips)
    assert_agree({"tokens": relative_l2(given, logits(module, clips))})
    ignored = {entry["name"]: entry["reason"] for entry in loaded.conversion["tensors"]["ignored"]}
    detection = "a detection head, which classifies regions and not clips"
    assert ignored.pop("backbone.pos_embed").startswith(SINUSOIDS)
    assert ignored == {
        "roi_head.bbox_head.fc_cls.weight": detection,
        "roi_head.bbox_head.fc_cls.bias": detection,
        "data_preprocessor.mean": "the preprocessing's constants, which are known",
        "data_preprocessor.std": "the preprocessing's constants, which are known",
    }


def test_a_classifier_of_the_first_token(tmp_path):
    module = original(mean_pooling=False)
    file = saved(mmaction2_names(module), tmp_path / "model.pth")
    assert run(file, tmp_path / "out", "--verify", *FRAMES, *HEADS) == 0
    assert_agree(distances(tmp_path / "out", module))


def test_what_is_not_known_is_named(tmp_path, capsys):
    weights = mmaction2_names(original()) | {"backbone.cls_token": torch.zeros(1, 1, 42)}
    file = saved(weights, tmp_path / "model.pth")
    (problem,) = refusal(capsys, tmp_path, file, *FRAMES, *HEADS)
    assert problem == f"{file}: no rule: backbone.cls_token [1, 1, 42]"
