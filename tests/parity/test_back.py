"""The way back, as PyTorch sees it: transformers and the original model load it and compute."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
import transformers

import videomae_jax as vm
from benchmarks.checkpoints import draw, mmaction2_shapes, original_shapes
from tests.configs import TINY as PLAIN
from tests.folders import run
from tests.parity.reference import CLASSES, random_clips, random_mask, to_torch
from tests.parity.sources import (
    HEADS,
    SIZES,
    Original,
    OriginalPretrainer,
    clips_first,
    hugging_face_model,
    original_model,
    save_folder,
    saved,
    training_file,
)
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer

ORIGINALS = {
    "fine-tuned": Original,
    "first token": functools.partial(Original, mean_pooling=False),
    "encoder": functools.partial(Original, num_classes=None, mean_pooling=False),
    "pre-training": OriginalPretrainer,
}
OPTIONS = {"cos_attn": True, "layer_scale_init_value": 0.1, "use_learnable_pos_emb": True}
PLAIN_SIZES = ("--image-size", "12x20", "--num-frames", 6)


def back(source, tmp_path, to, *options):
    """Convert and go back; returns the converted directory and what was written."""
    directory = tmp_path / "dir"
    assert run(source, directory, *options) == 0
    out = tmp_path / ("back.pth" if to == "original" else "back")
    assert run(directory, out, "--to", to, "--verify") == 0
    return directory, out


def assert_same_state(given, wanted):
    assert set(given) == set(wanted)
    for name, value in wanted.items():
        assert given[name].dtype == value.dtype, name
        assert torch.equal(given[name], value), name


def read(path):
    return torch.load(path, weights_only=True)


def assert_same_params(first, second):
    jax.tree.map(np.testing.assert_array_equal, vm.load(first).params, vm.load(second).params)


@pytest.mark.parametrize("model_class", [VideoClassifier, VideoPretrainer, VideoEncoder])
def test_transformers_loads_it_whole_and_computes_the_same(tmp_path, model_class):
    model = hugging_face_model(model_class)
    _, out = back(save_folder(model, tmp_path / "in"), tmp_path, "huggingface")
    again, info = CLASSES[model_class].from_pretrained(
        out, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info.values()), info
    assert_same_state(again.state_dict(), model.state_dict())
    config = vm.load(tmp_path / "dir").config
    inputs = [to_torch(random_clips(config))]
    if model_class is VideoPretrainer:
        inputs.append(torch.from_numpy(random_mask(config)))
    with torch.inference_mode():
        given, wanted = again.eval()(*inputs), model(*inputs)
    for name in ("logits", "last_hidden_state"):
        if name in wanted:
            assert torch.equal(given[name], wanted[name])


def test_the_auto_classes_find_it(tmp_path):
    folder = save_folder(hugging_face_model(VideoClassifier), tmp_path / "in")
    _, out = back(folder, tmp_path, "huggingface")
    model = transformers.AutoModelForVideoClassification.from_pretrained(out)
    assert type(model) is transformers.VideoMAEForVideoClassification
    processor = transformers.VideoMAEImageProcessorPil.from_pretrained(out)
    assert tuple(processor.image_mean) == vm.load(tmp_path / "dir").preprocess.image_mean


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_model_loads_it_and_computes_the_same(tmp_path, name):
    model = original_model(ORIGINALS[name]())
    file = saved(training_file(model.state_dict()), tmp_path / "model.pth")
    directory, out = back(file, tmp_path, "original", *SIZES, *HEADS)
    content = read(out)
    assert list(content) == ["model"]
    assert_same_state(content["model"], model.state_dict())
    other = original_model(ORIGINALS[name](), seed=1)
    other.load_state_dict(content["model"], strict=True)
    config = vm.load(directory).config
    inputs = [clips_first(random_clips(config))]
    if name == "pre-training":
        inputs.append(torch.from_numpy(random_mask(config)))
    with torch.inference_mode():
        assert torch.equal(other(*inputs), model(*inputs))


@pytest.mark.parametrize("name", ORIGINALS)
def test_from_the_original_to_transformers_and_back(tmp_path, name):
    model = original_model(ORIGINALS[name]())
    file = saved(model.state_dict(), tmp_path / "model.pth")
    directory, folder = back(file, tmp_path, "huggingface", *SIZES, *HEADS)
    assert run(folder, tmp_path / "again") == 0
    assert_same_params(directory, tmp_path / "again")
    assert run(tmp_path / "again", tmp_path / "again.pth", "--to", "original") == 0
    assert_same_state(read(tmp_path / "again.pth")["model"], model.state_dict())


@pytest.mark.parametrize("architecture", ["VideoClassifier", "VideoPretrainer", "VideoEncoder"])
def test_every_option_of_v2_goes_there_and_back(tmp_path, architecture):
    config = dataclasses.replace(PLAIN, **OPTIONS)
    shapes = original_shapes(config, architecture)
    state = {name: torch.from_numpy(array) for name, array in draw(shapes)}
    file = saved({"module": state}, tmp_path / "model.pth")
    _, out = back(file, tmp_path, "original", *PLAIN_SIZES)
    assert_same_state(read(out)["model"], state)


@pytest.mark.parametrize("to", ["huggingface", "original"])
def test_from_mmaction2(tmp_path, to):
    shapes = mmaction2_shapes(PLAIN, "VideoClassifier")
    del shapes["backbone.pos_embed"]
    state = {name: torch.from_numpy(array) for name, array in draw(shapes)}
    file = saved(state, tmp_path / "model.pth")
    directory, out = back(file, tmp_path, to, *PLAIN_SIZES, "--num-heads", 2)
    options = () if to == "huggingface" else (*PLAIN_SIZES, "--num-heads", 2)
    assert run(out, tmp_path / "again", *options) == 0
    assert_same_params(directory, tmp_path / "again")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_there_and_back(tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    state = {key: value.to(dtype) for key, value in original_model(Original()).state_dict().items()}
    file = saved(state, tmp_path / "model.pth")
    _, out = back(file, tmp_path, "original", *SIZES, *HEADS, "--dtype", name)
    assert_same_state(read(out)["model"], state)


def test_a_file_that_can_not_be_made_leaves_nothing(tmp_path, capsys, monkeypatch):
    file = saved(original_model(Original()).state_dict(), tmp_path / "model.pth")
    assert run(file, tmp_path / "dir", *SIZES, *HEADS) == 0

    def full(*arguments):
        raise OSError(28, "No space left on device", "back.pth")

    monkeypatch.setattr(torch, "save", full)
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    assert run(tmp_path / "dir", tmp_path / "back.pth", "--to", "original") == 2
    assert capsys.readouterr().err == (
        "convert: error: [Errno 28] No space left on device: 'back.pth'\n"
    )
    assert sorted(tmp_path.iterdir()) == before
