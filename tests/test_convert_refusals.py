"""What the command refuses: one line for each problem, exit code 2, nothing written."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.checkpoints import draw, original_shapes
from tests.configs import TINY
from tests.folders import (
    listing,
    random_tensors,
    refusal,
    run,
    write_folder,
    write_original,
)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "labels.txt: No such file or directory"),
        ("", "labels.txt: no labels"),
        ("a\nb\n\nc\nd\ne\nf\n", "labels.txt, line 3: blank"),
        ("a\nb\n", "labels.txt: names 2 classes, "),
    ],
)
def test_labels_that_do_not_fit(folder, tmp_path, capsys, content, text):
    file = tmp_path / "labels.txt"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out", "--labels", file)
    assert problem.startswith(f"{tmp_path}/{text}")
    assert problem.count("labels.txt") == 1


def test_labels_for_a_model_without_classes(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", architecture="VideoEncoder")
    file = tmp_path / "labels.txt"
    file.write_text("a\n", encoding="utf-8")
    (problem,) = refusal(capsys, tmp_path, folder, "--labels", file)
    assert problem == f"{file}: {folder} has no classes to name"


def test_every_problem_is_one_message(tmp_path, capsys):
    tensors = random_tensors()
    tensors["videomae.pooler.weight"] = np.zeros((3, 5), np.float32)
    name = "videomae.encoder.layer.0.attention.attention."
    tensors[f"{name}query.bias"] = tensors[f"{name}q_bias"] + 1
    del tensors["fc_norm.bias"]
    tensors["classifier.weight"] = np.zeros((8, 24), np.float32)
    tensors["classifier.bias"][3] = np.inf
    tensors["fc_norm.weight"][3] = np.nan
    folder = write_folder(tmp_path / "folder", tensors)
    problems = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert all(problem.startswith(f"{folder}: ") for problem in problems)
    kinds = sorted(problem.split(": ")[1] for problem in problems)
    assert kinds == [
        "filled twice",
        "never filled",
        "no rule",
        "not finite",
        "not finite",
        "wrong shape",
    ]
    assert refusal(capsys, tmp_path, folder) == problems


def make_directory(path):
    path.mkdir()
    (path / "mine.txt").write_text("mine")


def make_link_to_nothing(path):
    path.symlink_to(path.parent / "gone")


@pytest.mark.parametrize(
    "make", [make_directory, Path.mkdir, Path.touch, make_link_to_nothing], ids=lambda f: f.__name__
)
def test_an_out_that_exists_is_refused_and_untouched(folder, tmp_path, capsys, make):
    out = tmp_path / "out"
    make(out)
    (problem,) = refusal(capsys, tmp_path, folder, out)
    assert problem == f"{out} exists and is left as it is; name a new directory"
    # Before the source is even looked at.
    assert refusal(capsys, tmp_path, tmp_path / "gone", out) == [problem]


def test_an_out_below_a_file_is_refused(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    before = listing(tmp_path)
    assert run(folder, tmp_path / "file" / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"convert: error: {tmp_path / 'file' / 'out'}: can't be made (")
    assert listing(tmp_path) == before


def test_a_name_that_no_file_can_have(folder, tmp_path, capsys):
    for arguments in ((folder, tmp_path / ("x" * 300)), (tmp_path / ("x" * 300),)):
        assert run(*arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "File name too long" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "the following arguments are required: SOURCE"),
        (["a", "b", "c"], "unrecognized arguments: c"),
        (["a", "--num-heads", "six"], "argument --num-heads: invalid int value: 'six'"),
        (["a", "--image-size", "12x"], "argument --image-size: must be a number or HEIGHTxWIDTH"),
        (["a", "--image-size", "1x2x3"], "argument --image-size: must be a number or HEIGHTxWIDTH"),
        (["a", "--weights-only", "no"], "unrecognized arguments: --weights-only no"),
    ],
)
def test_a_command_line_that_makes_no_sense(capsys, arguments, text):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"convert: error: {text}")


@pytest.mark.parametrize("option", ["--num-heads", "--num-frames", "--image-size"])
def test_a_size_of_zero(folder, tmp_path, capsys, option):
    (problem,) = refusal(capsys, tmp_path, folder, option, 0)
    assert "must be at least 1" in problem


CONFIGS = [
    ({"hidden_sise": 24}, "unknown config entry 'hidden_sise' (did you mean 'hidden_size'?)"),
    ({"hidden_size": "24"}, "hidden_size must be int, got '24'"),
    ({"hidden_size": -24}, "hidden_size must be at least 1"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be finite"),
    ({"num_attention_heads": 7}, "hidden_size 24 is not a multiple of num_attention_heads 7"),
    ({"image_size": [12, 21]}, "image_size width 21 is not a multiple of patch_size width 4"),
    ({"id2label": {"0": "a"}}, "num_labels 7 contradicts id2label, which names 1"),
    ({"id2label": {"0": "a", "2": "b"}, "num_labels": None}, None),
    ({"qv_bias": False}, "qv_bias False contradicts qkv_bias True"),
    ({"model_type": "vit"}, "model_type must be 'videomae', got 'vit'"),
    ({"hidden_act": "swish7"}, "hidden_act 'swish7' is not supported"),
    ({"architectures": [["odd"]], "depth": 3}, "unknown config entry 'depth'"),
]


@pytest.mark.parametrize(("entries", "text"), CONFIGS)
def test_a_config_that_can_not_be(tmp_path, capsys, entries, text):
    folder = write_folder(tmp_path / "folder", **entries)
    problems = refusal(capsys, tmp_path, folder, tmp_path / "out")
    if text is not None:
        (problem,) = problems
        assert problem.startswith(f"{folder / 'config.json'}: {text}")


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '"text"', "null"])
def test_a_config_that_is_no_object(folder, tmp_path, capsys, content):
    (folder / "config.json").write_text(content)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{folder / 'config.json'}: ")
    # The same by the name of the file with the weights.
    assert refusal(capsys, tmp_path, folder / "model.safetensors") == [problem]


def test_a_config_that_is_missing(folder, tmp_path, capsys):
    (folder / "config.json").unlink()
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{folder}: a Hugging Face layout needs the config.json that belongs")


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 10**9},
        {"num_labels": 10**12},
        {"intermediate_size": 10**12},
        {"num_hidden_layers": 10**30},
        {"num_frames": 2 * 10**12},
        {"decoder_hidden_size": 10**12 + 1, "architectures": ["VideoMAEForPreTraining"]},
    ],
)
def test_sizes_that_lie_cost_no_memory(tmp_path, capsys, entries):
    folder = write_folder(tmp_path / "folder", **entries)
    problems = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert all(problem.startswith(f"{folder}") for problem in problems)


def test_json_files_of_others_do_not_disturb_an_original_file(tmp_path):
    path = write_original(tmp_path / "model.safetensors")
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("no JSON")
    assert run(path, "--image-size", "12x20", "--num-frames", 6, "--num-heads", 2) == 0


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"image_meen": [1]}', "unknown preprocessing entry 'image_meen'"),
        ('{"size": {"shortest_edge": 0}}', "size shortest_edge must be from 1"),
        ('{"image_processor_type": "ViTImageProcessor"}', "image_processor_type must be one of"),
        ('{"crop_size": {"height": 8, "width": 8}}', ""),
    ],
)
def test_a_preprocessor_that_can_not_be(folder, tmp_path, capsys, content, text):
    file = folder / "preprocessor_config.json"
    file.write_text(content)
    (problem,) = refusal(capsys, tmp_path, folder, tmp_path / "out")
    assert problem.startswith(f"{file}: {text}")


def test_a_source_of_another_model(tmp_path, capsys):
    path = tmp_path / "resnet.safetensors"
    names = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight", "fc.bias")
    save_file({name: np.ones(3, np.float32) for name in names}, path)
    (problem,) = refusal(capsys, tmp_path, path, tmp_path / "out")
    assert problem.startswith(f"{path}: not a VideoMAE layout known here (")
    assert problem.endswith("; its first tensors are bn1.weight, conv1.weight, fc.bias, fc.weight")


def test_a_safetensors_file_without_tensors(tmp_path, capsys):
    save_file({}, tmp_path / "model.safetensors")
    (problem,) = refusal(capsys, tmp_path, tmp_path)
    assert problem.startswith(f"{tmp_path}: not a VideoMAE layout known here (")


@pytest.mark.parametrize("missing", ["patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"])
def test_an_original_file_that_lacks_a_tensor(tmp_path, capsys, missing):
    tensors = dict(draw(original_shapes(TINY, "VideoClassifier")))
    del tensors[missing]
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    sizes = ("--image-size", "12x20", "--num-frames", "6", "--num-heads", "2")
    (problem,) = refusal(capsys, tmp_path, path, tmp_path / "out", *sizes)
    assert problem.startswith(f"{path}: ")
    if missing.startswith("blocks"):
        assert problem == f"{path}: never filled: encoder/layers/mlp/fc1/kernel, layer 0"


def test_an_original_file_without_any_mlp(tmp_path, capsys):
    tensors = dict(draw(original_shapes(TINY, "VideoClassifier")))
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in tensors.items() if "mlp" not in name}, path)
    (problem,) = refusal(capsys, tmp_path, path)
    assert problem == f"{path}: blocks.{{n}}.mlp.fc1.weight is missing; wanted 2 axes"
