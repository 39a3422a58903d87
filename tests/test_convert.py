"""The command from end to end, without torch: what it prints, writes and refuses."""

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import videomae_jax as vm
from benchmarks.checkpoints import draw, original_shapes
from convert.job import convert
from tests.configs import TINY, random_clips
from tests.folders import (
    ARCHITECTURES,
    assert_memory_within_bound,
    listing,
    random_tensors,
    refusal,
    run,
    write_folder,
    write_json,
)
from videomae_jax.processing import Preprocess

ROOT = Path(__file__).parents[1]
FILES = {"config.json", "processing.json", "labels.json", "conversion.json", "params"}
SMALL_WIDTH = dataclasses.replace(
    TINY, hidden_size=384, num_attention_heads=16, num_hidden_layers=1
)


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


def write_original(path, config=TINY, architecture="VideoClassifier"):
    """An original layout in a safetensors file, which needs no torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(draw(original_shapes(config, architecture))), path)
    return path


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_folder_becomes_a_directory_that_loads(tmp_path, architecture, capsys):
    folder = write_folder(tmp_path / "folder", architecture=architecture)
    assert run(folder, tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "out"}
    printed = capsys.readouterr()
    assert printed.out.endswith(f"written to {tmp_path / 'out'}\n")
    assert printed.err == ""
    loaded = vm.load(tmp_path / "out")
    assert type(loaded.model).__name__ == architecture
    assert loaded.config == TINY
    wanted = convert(folder).params
    assert jax.tree.structure(loaded.params) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted)


def test_out_may_be_relative_and_deep(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("folder", "new/deep/out") == 0
    assert vm.load("new/deep/out").config == TINY


REPORT = """\
source         {folder}
layout         huggingface
architecture   VideoClassifier, 15,919 parameters
width, layers  24, 3
heads          2 of 12
clip           6 frames of 12 x 20, 3 channels, tubelets of 2 x 4 x 4
LayerNorm eps  1e-12 blocks, 1e-05 fc_norm
preprocessing  {preprocess}
               (preprocessor_config.json)
labels         7 (config.json)
tensors        51 read, 51 mapped, 0 unused; 51 F32
"""
NAMES = "running jumping swimming rowing singing cooking sleeping".split()
PREPROCESSOR = {
    "size": {"shortest_edge": 12},
    "crop_size": {"height": 12, "width": 20},
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


@pytest.fixture
def complete(tmp_path):
    """A folder with class names and a preprocessor file."""
    folder = write_folder(
        tmp_path / "complete",
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
        num_labels=None,
    )
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    return folder


def test_the_report_alone_writes_nothing(complete, capsys):
    before = listing(complete.parent)
    assert run(complete) == 0
    printed = capsys.readouterr()
    preprocess = convert(complete).description.preprocess.describe()
    assert printed.out == REPORT.format(folder=complete, preprocess=preprocess)
    assert "0.485 0.456 0.406" in preprocess
    assert "0.229 0.224 0.225" in preprocess
    assert printed.err == ""
    assert listing(complete.parent) == before


def test_the_report_is_written(complete, tmp_path):
    assert run(complete, tmp_path / "out") == 0
    loaded, report = vm.load(tmp_path / "out"), read(tmp_path / "out" / "conversion.json")
    assert loaded.conversion == report
    assert loaded.labels.names == tuple(NAMES)
    assert read(tmp_path / "out" / "labels.json") == NAMES
    assert loaded.preprocess.image_mean == tuple(PREPROCESSOR["image_mean"])
    assert report["format"] == "videomae_jax/conversion/1"
    assert report["source"] == {
        "path": str(complete),
        "files": ["model.safetensors"],
        "layout": "huggingface",
        "entry": None,
        "ignored_entries": [],
    }
    assert report["network"] == {
        "architecture": "VideoClassifier",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        "heads": 2,
        "head_dim": 12,
        "overrides": {},
        "config": TINY.to_dict(),
    }
    assert report["preprocessing"]["source"] == "preprocessor_config.json"
    assert report["preprocessing"]["description"] == loaded.preprocess.describe()
    assert report["labels"] == {"source": "config.json", "count": 7}
    assert report["tensors"] == {"read": 51, "mapped": 51, "unused": 0, "dtypes": {"F32": 51}}
    assert report["warnings"] == []
    assert report["versions"]["jax"] == jax.__version__


def test_the_report_of_a_pretrainer_shows_its_decoder(tmp_path, capsys):
    assert run(write_folder(tmp_path / "folder", architecture="VideoPretrainer")) == 0
    out = capsys.readouterr().out
    assert "\ndecoder        20 wide, 2 layers, 5 heads of 4\n" in out
    assert "\nLayerNorm eps  1e-12 blocks, 1e-05 decoder norm\n" in out
    assert "\nlabels         0 (no classes)\n" in out


def test_what_is_assumed_is_a_warning(folder, capsys):
    assert run(folder) == 0
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning: " in line]
    assert [warning.split(":")[1] for warning in warnings] == [
        " No preprocessor_config.json",
        " No class names",
    ]
    description = convert(folder).description
    assert description.preprocess == Preprocess.default(TINY.image_size)
    assert description.labels == vm.Labels.numbered(7)


def test_the_trap_of_sixteen_heads_is_a_warning(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", config=SMALL_WIDTH)
    assert run(folder) == 0
    out = capsys.readouterr().out
    assert "\nheads          16 of 24\n" in out
    assert "warning: 16 heads of 24: models 384 wide were trained" in out
    assert "with 6 heads of 64" in out
    assert "The published config of the small models says 16" in out
    assert "Convert again with --num-heads 6 and compare." in out


def test_other_heads_than_a_wider_model_has_are_a_warning(tmp_path, capsys):
    config = dataclasses.replace(SMALL_WIDTH, hidden_size=768, intermediate_size=8)
    assert run(write_folder(tmp_path / "folder", config=config)) == 0
    out = capsys.readouterr().out
    assert "warning: 16 heads of 48: models 768 wide were trained by the original code with " in out
    assert "with 12 heads of 64. Convert again with --num-heads 12 and compare." in out


def test_heads_that_the_user_gives_are_recorded(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", config=SMALL_WIDTH)
    assert run(folder, tmp_path / "out", "--num-heads", 6) == 0
    out = capsys.readouterr().out
    assert "\nheads          6 of 64\n" in out
    assert "\noverrides      num_attention_heads=6\n" in out
    assert "were trained" not in out
    loaded = vm.load(tmp_path / "out")
    assert loaded.config.num_attention_heads == 6
    assert loaded.conversion["network"]["overrides"] == {"num_attention_heads": 6}
    assert (loaded.conversion["network"]["heads"], loaded.config.head_dim) == (6, 64)
    # The weights are the same; what is made of them is not.
    other = convert(folder)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, other.params)
    clips = random_clips(TINY, batch=1)
    given = loaded.model.apply({"params": loaded.params}, clips)
    wanted = other.model.apply({"params": other.params}, clips)
    assert np.abs(given - wanted).max() > 1e-4


def test_a_config_whose_heads_do_not_divide_can_be_mended(tmp_path, capsys):
    folder = write_folder(tmp_path / "folder", num_attention_heads=7)
    (problem,) = refusal(capsys, tmp_path, folder)
    assert problem.startswith(f"{folder / 'config.json'}: hidden_size 24 is not a multiple of ")
    assert run(folder, "--num-heads", 8) == 0


def test_an_original_file_says_what_is_assumed(tmp_path, capsys):
    config = dataclasses.replace(SMALL_WIDTH, patch_size=(4, 5))
    path = write_original(tmp_path / "model.safetensors", config)
    assert run(path, "--image-size", "12x20", "--num-frames", 6) == 0
    out = capsys.readouterr().out
    assert "\nlayout         original\n" in out
    assert "\nheads          6 of 64\n" in out
    assert "\nLayerNorm eps  1e-06 blocks, 1e-06 fc_norm\n" in out
    assert "\nclip           6 frames of 12 x 20, 3 channels, tubelets of 2 x 4 x 5\n" in out
    assert "\n               (the original code's evaluation)\n" in out
    assert "so these are assumed: 6 heads of 64 (--num-heads).\n" in out
    assert run(path, "--image-size", "40", "--num-heads", "12") == 0
    out = capsys.readouterr().out
    assert "\nclip           16 frames of 40 x 40, " in out
    assert "so these are assumed: 16 frames (--num-frames).\n" in out


@pytest.mark.parametrize(
    ("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16)]
)
def test_heads_of_published_widths_are_known(tmp_path, width, heads):
    config = dataclasses.replace(SMALL_WIDTH, hidden_size=width, intermediate_size=8)
    path = write_original(tmp_path / "model.safetensors", config)
    found = convert(path, overrides={"image_size": (12, 20), "num_frames": 6}).network.config
    assert found.num_attention_heads == heads
    assert (found.layer_norm_eps, found.fc_norm_eps) == (1e-6, 1e-6)
    for field in ("hidden_size", "num_hidden_layers", "intermediate_size", "num_labels"):
        assert getattr(found, field) == getattr(config, field)


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (512, 8), (640, 8)])
def test_heads_of_published_decoders_are_known(tmp_path, width, heads):
    config = dataclasses.replace(
        SMALL_WIDTH, decoder_hidden_size=width, decoder_num_attention_heads=1
    )
    path = write_original(tmp_path / "model.safetensors", config, "VideoPretrainer")
    found = convert(path, overrides={"image_size": (12, 20), "num_frames": 6}).network.config
    assert (found.decoder_hidden_size, found.decoder_num_attention_heads) == (width, heads)
    assert found.decoder_intermediate_size == config.decoder_intermediate_size
    assert found.decoder_num_hidden_layers == config.decoder_num_hidden_layers


def test_heads_of_other_widths_are_asked_for(tmp_path, capsys):
    path = write_original(tmp_path / "model.safetensors", architecture="VideoPretrainer")
    (problem,) = refusal(capsys, tmp_path, path)
    assert problem == (
        f"{path}: no published model is 24 wide, so its heads can't be guessed; say --num-heads N"
    )
    (problem,) = refusal(capsys, tmp_path, path, "--num-heads", 2)
    assert problem.endswith("20 wide, so its heads can't be guessed; say --decoder-num-heads N")
    sizes = ("--image-size", "12x20", "--num-frames", "6")
    assert run(path, "--num-heads", 2, "--decoder-num-heads", 5, *sizes) == 0


def test_labels_from_a_file(folder, tmp_path, capsys):
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    assert run(folder, tmp_path / "out", "--labels", file) == 0
    assert vm.load(tmp_path / "out").labels.names == tuple(NAMES)
    assert "\nlabels         7 (names.txt)\n" in capsys.readouterr().out


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
    path = write_original(tmp_path / "model.safetensors", SMALL_WIDTH)
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text("no JSON")
    assert run(path, "--image-size", "12x20", "--num-frames", 6) == 0


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


WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ImportError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
from convert.__main__ import main
sys.exit(main())
"""


def without_torch(*arguments) -> subprocess.CompletedProcess:
    """The command in a process that has neither torch nor transformers."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )


def test_safetensors_need_no_torch(folder, tmp_path):
    done = without_torch(folder, tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert vm.load(tmp_path / "out").config == TINY


def test_torch_files_say_what_to_install(tmp_path):
    path = tmp_path / "model.pth"
    path.write_bytes(b"anything")
    done = without_torch(path, tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"convert: error: {path}: reading it needs torch; pip install 'videomae-jax[torch]', or "
        f"convert it to safetensors elsewhere\n"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["model.pth"]


def test_verification_says_what_to_install(folder, tmp_path):
    done = without_torch(folder, tmp_path / "out", "--verify")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "convert: error: --verify needs torch; pip install 'videomae-jax[verify]'\n"
    )
    assert [item.name for item in tmp_path.iterdir()] == ["folder"]


# Kills the process when `moment` comes: the first rename, that to OUT, a JSON file about to be
# written (under whatever name at first), or half of config.json on its way out.
KILLED_AT = """
import json, os, signal, sys
moment = sys.argv.pop(1)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def watch(event, arguments):
    if event == "os.rename" and moment in ("first rename", f"rename to {arguments[1]}"):
        kill()
    if event == "open" and arguments[1] == "w" and str(arguments[0]).endswith(moment):
        kill()

dump = json.dump

def half_a_dump(content, file, **options):
    if moment == "inside config.json" and file.name.endswith("config.json"):
        file.write("{")
        file.flush()
        kill()
    dump(content, file, **options)

json.dump = half_a_dump
from convert.__main__ import main
from convert import audit, job, verify
from orbax.checkpoint import v1
sys.addaudithook(watch)
sys.exit(main())
"""


def assert_nothing_looks_complete(parent: Path, out: Path) -> None:
    """No directory has a config.json but those that load; `out` is whole or not there."""
    for config in parent.rglob("config.json"):
        if config.parent.name != "folder":
            vm.load(config.parent)
    if out.exists():
        vm.load(out)


@pytest.mark.parametrize(
    "moment",
    [
        "first rename",
        "processing.json",
        "conversion.json",
        "config.json",
        "inside config.json",
        "rename to {out}",
    ],
)
def test_a_kill_leaves_nothing_that_looks_complete(folder, tmp_path, moment):
    out = tmp_path / "out"
    moment = moment.format(out=out)
    command = [sys.executable, "-c", KILLED_AT, moment, str(folder), str(out)]
    done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert_nothing_looks_complete(tmp_path, out)
    assert run(folder, out) == 0
    vm.load(out)


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_at_any_moment(folder, tmp_path, seed):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "convert", str(folder), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".out.*")):
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.wait()
    assert_nothing_looks_complete(tmp_path, out)
    if out.exists():
        assert process.returncode in (0, -signal.SIGKILL)
    else:
        assert run(folder, out) == 0
        vm.load(out)


def test_memory_stays_within_its_bound(tmp_path):
    assert_memory_within_bound(tmp_path, "safetensors")
