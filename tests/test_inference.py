import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from tests.configs import TINY, random_params
from videomae_jax.checkpoint import CheckpointError, Description, save
from videomae_jax.inference import classify, load
from videomae_jax.labels import Labels
from videomae_jax.model import ARCHITECTURES, VideoClassifier, abstract_params
from videomae_jax.processing import Preprocess

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 30, 50, 3), dtype=np.uint8)


def write(directory, architecture="VideoClassifier", config=TINY):
    model = ARCHITECTURES[architecture](config)
    description = Description(
        architecture=architecture,
        config=config,
        preprocess=Preprocess.default(config.image_size),
        labels=Labels(tuple("abcdefg")) if architecture == "VideoClassifier" else None,
        conversion={"format": "test"},
    )
    save(directory, random_params(abstract_params(model)), description)
    return directory


def test_a_loaded_checkpoint_is_all_that_inference_needs(tmp_path):
    checkpoint = load(write(tmp_path / "model"))
    assert isinstance(checkpoint.model, VideoClassifier)
    assert checkpoint.config == TINY
    assert checkpoint.conversion == {"format": "test"}
    clip = checkpoint.preprocess(FRAMES)[None]
    assert clip.shape == (1, *TINY.clip_shape)
    logits = jax.jit(checkpoint.model.apply)({"params": checkpoint.params}, clip)
    ranked = checkpoint.labels.rank(logits[0], 3)
    found = classify(checkpoint, FRAMES, top_k=3)
    assert [entry.label for entry in found] == [entry.label for entry in ranked]
    np.testing.assert_allclose([e.probability for e in found], [e.probability for e in ranked])
    assert len(classify(checkpoint, FRAMES, top_k=100)) == 7


@pytest.mark.parametrize("architecture", ["VideoEncoder", "VideoPretrainer"])
def test_models_without_classes_load_and_can_not_classify(tmp_path, architecture):
    checkpoint = load(write(tmp_path / "model", architecture))
    assert checkpoint.labels is None
    with pytest.raises(ValueError, match=f"{architecture} without classes"):
        classify(checkpoint, FRAMES)


def test_several_labels_get_a_probability_each(tmp_path):
    config = dataclasses.replace(TINY, problem_type="multi_label_classification")
    checkpoint = load(write(tmp_path / "model", config=config))
    logits = checkpoint.model.apply(
        {"params": checkpoint.params}, checkpoint.preprocess(FRAMES)[None]
    )[0]
    for entry in classify(checkpoint, FRAMES, top_k=7):
        assert entry.probability == pytest.approx(1 / (1 + np.exp(-logits[entry.index])), rel=1e-5)


def test_a_regression_model_does_not_classify(tmp_path):
    config = dataclasses.replace(TINY, problem_type="regression")
    with pytest.raises(ValueError, match="regression"):
        classify(load(write(tmp_path / "model", config=config)), FRAMES)


def test_frames_that_do_not_fit_the_model_are_refused(tmp_path):
    checkpoint = load(write(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"clips must be .* got \[1, 5, 12, 20, 3\]"):
        classify(checkpoint, FRAMES[:5])


def test_an_unknown_architecture_is_named(tmp_path):
    path = write(tmp_path / "model") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": "VideoDreamer"}))
    with pytest.raises(CheckpointError, match="VideoDreamer"):
        load(tmp_path / "model")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess.default(TINY.image_size),
        Preprocess.original(TINY.image_size),
        dataclasses.replace(
            Preprocess.default(TINY.image_size), image_mean=0.3, image_std=0.2, rescale_factor=0.01
        ),
        dataclasses.replace(Preprocess.default(TINY.image_size), do_normalize=False),
    ],
    ids=["default", "original", "one number", "not normalised"],
)
def test_uint8_frames_give_the_same_logits(tmp_path, preprocess):
    loaded = dataclasses.replace(load(write(tmp_path / "model")), preprocess=preprocess)
    variables = {"params": loaded.params}
    frames = loaded.preprocess.resized(FRAMES)[None]
    assert frames.dtype == np.uint8
    assert frames.shape == (1, *TINY.clip_shape)
    given = jax.jit(loaded.apply_uint8)(variables, frames)
    wanted = jax.jit(loaded.model.apply)(variables, loaded.preprocess(FRAMES)[None])
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5)
    states = loaded.apply_uint8(variables, frames, method="hidden_states")
    assert states.shape[0] == TINY.num_hidden_layers + 1


def test_uint8_frames_reach_a_model_with_a_mask(tmp_path):
    loaded = load(write(tmp_path / "model", "VideoPretrainer"))
    mask = np.arange(45)[None] < 27
    frames = loaded.preprocess.resized(FRAMES)[None]
    given = loaded.apply_uint8({"params": loaded.params}, frames, mask)
    clip = loaded.preprocess(FRAMES)[None]
    wanted = loaded.model.apply({"params": loaded.params}, clip, mask)
    np.testing.assert_allclose(given, wanted, rtol=0, atol=1e-5)


def test_a_program_of_uint8_frames_takes_uint8(tmp_path):
    loaded = load(write(tmp_path / "model"))
    frames = loaded.preprocess.resized(FRAMES)[None]
    text = jax.jit(loaded.apply_uint8).lower({"params": loaded.params}, frames).as_text()
    arguments = re.search(r"@main\(.*", text).group()
    assert "tensor<1x6x12x20x3xui8>" in arguments
    assert "6x12x20x3xf32" not in arguments


def test_what_is_no_uint8_clip_is_refused(tmp_path):
    loaded = load(write(tmp_path / "model"))
    variables = {"params": loaded.params}
    clip = loaded.preprocess(FRAMES)[None]
    with pytest.raises(ValueError, match=re.escape("must be uint8, resized by")):
        loaded.apply_uint8(variables, clip)
    with pytest.raises(ValueError, match=r"clips must be .* got \[1, 6, 30, 50, 3\]"):
        loaded.apply_uint8(variables, FRAMES[None])


@pytest.mark.parametrize("param_dtype", [None, "float32", "bfloat16"])
def test_dtypes_of_what_is_loaded(tmp_path, param_dtype):
    plain = load(write(tmp_path / "model"))
    loaded = load(tmp_path / "model", dtype="bfloat16", param_dtype=param_dtype)
    held = {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)}
    assert held == {param_dtype or "float32"}
    clip = plain.preprocess(FRAMES)[None]
    wanted = np.asarray(plain.model.apply({"params": plain.params}, clip))
    given = np.asarray(loaded.model.apply({"params": loaded.params}, clip))
    assert given.dtype == np.float32
    error = np.linalg.norm(given - wanted) / np.linalg.norm(wanted)
    assert 1e-5 < error < 0.02


@pytest.mark.parametrize("name", ["dtype", "param_dtype"])
def test_another_dtype_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="must be one of float32, bfloat16, got 'float16'"):
        load(write(tmp_path / "model"), **{name: "float16"})
