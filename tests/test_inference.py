import dataclasses
import json

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
