"""The way back to Hugging Face's layout, without torch: bits, labels, settings, refusals."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import videomae_jax as vm
from benchmarks.checkpoints import draw, v2_hub_shapes
from convert import back, pytorch_files
from convert.errors import ConversionError
from convert.layouts import HUGGING_FACE, LAYOUTS
from convert.source import open_source
from tests.configs import TINY
from tests.folders import (
    ARCHITECTURES,
    listing,
    random_tensors,
    refusal,
    run,
    write_folder,
    write_json,
    write_original,
)

SIZES = ("--image-size", "12x20", "--num-frames", 6, "--num-heads", 2)
# A name that two classes have, and one of another alphabet.
NAMES = ["running", "跳", "running", "rowing", "singing", "cooking", 'saying "so"']


@pytest.fixture
def directory(tmp_path):
    """A converted directory."""
    assert run(write_folder(tmp_path / "folder"), tmp_path / "dir") == 0
    return tmp_path / "dir"


def contents(path):
    return json.loads(path.read_text(encoding="utf-8"))


def assert_same_tensors(given, wanted):
    assert set(given) == set(wanted)
    for name, array in wanted.items():
        assert given[name].dtype == array.dtype, name
        np.testing.assert_array_equal(given[name], array, err_msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fields", [{}, {"use_mean_pooling": False}, {"qkv_bias": False}])
def test_there_and_back_is_the_same_to_the_last_bit(tmp_path, architecture, fields):
    config = dataclasses.replace(TINY, **fields)
    folder = write_folder(tmp_path / "folder", architecture=architecture, config=config)
    assert run(folder, tmp_path / "dir") == 0
    assert run(tmp_path / "dir", tmp_path / "back", "--to", "huggingface") == 0
    wanted = load_file(folder / "model.safetensors")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), wanted)
    assert run(tmp_path / "back", tmp_path / "again") == 0
    first, second = vm.load(tmp_path / "dir"), vm.load(tmp_path / "again")
    assert first.config == second.config
    assert type(first.model) is type(second.model)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_half_precision_goes_there_and_back(tmp_path, name):
    dtype = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[name]
    tensors = {key: array.astype(dtype) for key, array in random_tensors().items()}
    folder = write_folder(tmp_path / "folder", tensors)
    assert run(folder, tmp_path / "dir", "--dtype", name) == 0
    loaded = vm.load(tmp_path / "dir")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded.params)} == {name}
    assert run(tmp_path / "dir", tmp_path / "back", "--to", "huggingface") == 0
    source = open_source(tmp_path / "back")
    assert_same_tensors({key: value.read() for key, value in source.tensors.items()}, tensors)
    assert contents(tmp_path / "back" / "config.json")["dtype"] == name
    # And wide again, which loses nothing.
    assert run(tmp_path / "dir", tmp_path / "w", "--to", "huggingface", "--dtype", "float32") == 0
    wide = {key: array.astype(np.float32) for key, array in tensors.items()}
    assert_same_tensors(load_file(tmp_path / "w" / "model.safetensors"), wide)


def test_rounding_is_to_the_nearest(directory, tmp_path):
    assert run(directory, tmp_path / "back", "--to", "huggingface", "--dtype", "bfloat16") == 0
    source = open_source(tmp_path / "back")
    wanted = {name: value.astype(ml_dtypes.bfloat16) for name, value in random_tensors().items()}
    assert_same_tensors({key: value.read() for key, value in source.tensors.items()}, wanted)


def test_names_and_preprocessing_survive(tmp_path):
    folder = write_folder(tmp_path / "folder")
    preprocessor = {
        "size": {"shortest_edge": 20},
        "crop_size": {"height": 12, "width": 20},
        "resample": 3,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    write_json(folder / "preprocessor_config.json", preprocessor)
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    assert run(folder, tmp_path / "dir", "--labels", tmp_path / "names.txt") == 0
    assert run(tmp_path / "dir", tmp_path / "back", "--to", "huggingface") == 0
    assert run(tmp_path / "back", tmp_path / "again") == 0
    first, second = vm.load(tmp_path / "dir"), vm.load(tmp_path / "again")
    assert list(second.labels.names) == NAMES
    assert first.preprocess == second.preprocess
    written = contents(tmp_path / "back" / "preprocessor_config.json")
    assert preprocessor.items() <= written.items()


def test_what_pytorch_wants_to_be_told(directory, tmp_path):
    assert run(directory, tmp_path / "back", "--to", "huggingface") == 0
    with safe_open(tmp_path / "back" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    config = contents(tmp_path / "back" / "config.json")
    assert config["architectures"] == ["VideoMAEForVideoClassification"]
    assert (config["model_type"], config["dtype"]) == ("videomae", "float32")
    # Whoever may read the one file may read the other.
    modes = {path.stat().st_mode for path in (tmp_path / "back").iterdir()}
    assert len(modes) == 1


def test_the_report_of_the_way_back(directory, tmp_path, capsys):
    capsys.readouterr()
    assert run(directory, tmp_path / "back", "--to", "huggingface") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"source         {directory}\nto             transformers")
    assert printed.endswith(f"written to {tmp_path / 'back'}\n")
    report = contents(tmp_path / "back" / "conversion.json")
    assert report["format"] == back.BACK_FORMAT
    assert {file["name"] for file in report["written"]} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    assert "config.json" in {file["name"] for file in report["source"]["files"]}


def test_what_transformers_does_otherwise_is_a_warning(tmp_path, capsys):
    path = write_original(tmp_path / "original.safetensors")
    assert run(path, tmp_path / "dir", *SIZES) == 0
    capsys.readouterr()
    assert run(tmp_path / "dir", tmp_path / "back", "--to", "huggingface") == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    assert len(warnings) == 2
    assert "antialiasing" in warnings[0]
    assert warnings[1] == "warning: LayerNorm eps of fc_norm is 1e-06 here and 1e-05 there."


def test_an_encoder_with_a_pooling_norm_goes_back(tmp_path):
    # VideoMAE V2's folders on the hub: features, no classes.
    config = dataclasses.replace(TINY, num_labels=0)
    shapes = v2_hub_shapes(config, "VideoClassifier")
    tensors = {n: a for n, a in draw(shapes) if not n.startswith("model.head")}
    model_config = {"num_heads": 2, "img_size": [12, 20], "num_frames": 6, "num_classes": 0}
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    write_json(folder / "config.json", {"model_config": model_config})
    assert run(folder, tmp_path / "dir") == 0
    assert run(tmp_path / "dir", tmp_path / "back", "--to", "huggingface") == 0
    assert run(tmp_path / "back", tmp_path / "again") == 0
    first, second = vm.load(tmp_path / "dir"), vm.load(tmp_path / "again")
    assert (first.config.num_labels, second.config.num_labels) == (0, 0)
    assert type(second.model) is vm.VideoClassifier
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def test_every_layout_has_an_inverse_of_each_rule():
    config = TINY
    shapes = {
        "encoder/patch_embed/kernel": (24, 3, 2, 4, 4),
        "mask_token": (1, 1, 20),
        "encoder/pos_embed": (1, 45, 24),
    }
    generator = np.random.default_rng(0)
    for layout in LAYOUTS:
        for rule in layout.rules:
            shape = (2, 1, 1) if rule.target.endswith("logit_scale") else (5, 7)
            array = generator.standard_normal(shapes.get(rule.target, shape))
            there = rule.change(array)
            np.testing.assert_array_equal(rule.change.back(there, config), array)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ("--num-heads", 3),
        ("--labels", "x"),
        ("--label-map", "x"),
        ("--weights", "ema"),
        ("--image-size", 224),
        ("--num-frames", 16),
        ("--decoder-num-heads", 2),
    ],
)
def test_what_has_no_meaning_on_the_way_back(directory, tmp_path, capsys, options):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(directory, tmp_path / "back", "--to", "huggingface", *options)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"convert: error: {options[0]} is of no use with --to: convert anew with it first"
    )


def test_the_way_back_needs_a_place(directory, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(directory, "--to", "huggingface")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "convert: error: --to huggingface needs OUT\n"


def test_an_out_that_exists_stays(directory, tmp_path, capsys):
    capsys.readouterr()
    (tmp_path / "back").mkdir()
    for target in back.TARGETS:
        (problem,) = refusal(capsys, tmp_path, directory, tmp_path / "back", "--to", target)
        assert problem.startswith(f"{tmp_path / 'back'} exists")


def test_only_a_converted_directory_goes_back(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder")
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "back", "--to", "huggingface")
    assert problem.startswith(f"{folder}: config.json has format None")


@pytest.mark.parametrize(
    "field", [{"cos_attn": True}, {"layer_scale_init_value": 0.1}, {"use_learnable_pos_emb": True}]
)
def test_what_transformers_can_not_compute(tmp_path, capsys, field):
    config = dataclasses.replace(TINY, **field)
    path = write_original(tmp_path / "original.safetensors", config)
    assert run(path, tmp_path / "dir", *SIZES) == 0
    capsys.readouterr()
    (problem,) = refusal(capsys, tmp_path, tmp_path / "dir", tmp_path / "b", "--to", "huggingface")
    assert problem == (f"transformers' VideoMAE has no {next(iter(field))}; --to original keeps it")


def test_a_value_too_large_for_the_dtype(tmp_path, capsys):
    tensors = random_tensors()
    tensors["classifier.bias"][2] = 1e5
    assert run(write_folder(tmp_path / "folder", tensors), tmp_path / "dir") == 0
    capsys.readouterr()
    command = (tmp_path / "dir", tmp_path / "back", "--to", "huggingface", "--dtype", "float16")
    before = listing(tmp_path)
    assert run(*command) == 2
    assert listing(tmp_path) == before
    assert capsys.readouterr().err == ("convert: error: classifier.bias is too large for float16\n")


# --- safetensors writes what lies in memory, whatever the strides say (its issue 825) ------------


def test_transposed_arrays_are_written_as_they_read(directory, tmp_path):
    export = back.read(directory, "huggingface")
    made = {name: make() for name, make in export.pieces}
    kernels = [name for name, array in made.items() if array.ndim > 1]
    # The danger is there: what the tables hand over is not in the order of memory.
    assert sum(not made[name].flags.c_contiguous for name in kernels) > len(kernels) // 2
    back.write(export, tmp_path / "back")
    assert_same_tensors(load_file(tmp_path / "back" / "model.safetensors"), random_tensors())


def test_an_array_out_of_order_never_reaches_the_library(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(ValueError, match="x is not contiguous"):
        pytorch_files.save_safetensors({"x": array.T}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_what_is_read_back_otherwise_is_refused(directory, tmp_path, monkeypatch):
    right = pytorch_files.save_safetensors

    def scrambled(tensors, path):
        name = "classifier.weight"
        right({**tensors, name: np.ascontiguousarray(tensors[name][::-1])}, path)

    monkeypatch.setattr(back, "save_safetensors", scrambled)
    export = back.read(directory, "huggingface")
    before = listing(tmp_path)
    with pytest.raises(ConversionError, match=r"classifier\.weight is read back otherwise"):
        back.write(export, tmp_path / "back")
    assert listing(tmp_path) == before


def test_a_parameter_without_a_place_is_refused(directory):
    export = back.read(directory, "huggingface")
    params = {**export.params, "extra": {"kernel": np.ones((2, 3), np.float32)}}
    with pytest.raises(ConversionError, match="huggingface files have no place for extra/kernel"):
        list(back.pieces(params, HUGGING_FACE, "VideoClassifier", TINY))
