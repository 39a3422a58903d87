"""The command from end to end, without torch: what it prints, writes and refuses."""

import dataclasses
import hashlib
import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import videomae_jax as vm
from convert.job import Request, convert
from tests.configs import TINY, random_clips
from tests.folders import (
    ARCHITECTURES,
    assert_memory_within_bound,
    listing,
    refusal,
    run,
    write_folder,
    write_json,
    write_original,
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


def unfolded(text):
    """A report with its folded lines joined, and one space where there are several."""
    return re.sub(" +", " ", re.sub(r"\n +", " ", text))


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
files          model.safetensors         69,244 bytes  sha256 {digests[0]}
               config.json                  858 bytes  sha256 {digests[1]}
               preprocessor_config.json     146 bytes  sha256 {digests[2]}
architecture   VideoClassifier
parameters     15,919 in float32 (the nearest published size, small, has 21,882,631)
width, layers  24, 3
heads          2 of 12
clip           6 frames of 12 x 20, 3 channels, tubelets of 2 x 4 x 4
LayerNorm eps  1e-12 blocks, 1e-05 fc_norm
preprocessing  short side 12 (pil bilinear, antialiased), centre crop 12x20, mean 0.485 0.456 0.406,
               std 0.229 0.224 0.225
               (preprocessor_config.json)
original       short side 20 (opencv bilinear, not antialiased), centre crop 12x20,
               mean 0.485 0.456 0.406, std 0.229 0.224 0.225
               (other resize)
labels         7 (config.json)
tensors        51 read, 51 mapped, 0 ignored; 51 F32
q/v biases     norm in a layer, smallest and largest
               encoder/layers/attention/qkv/query_bias      0.402     0.533
               encoder/layers/attention/qkv/value_bias      0.271     0.648
LayerNorms     smallest and largest                                  scale                   bias
               encoder/layers/norm_1                        0.785       1.2       -0.241     0.286
               encoder/layers/norm_2                        0.715      1.23       -0.235     0.246
               fc_norm                                      0.851      1.26       -0.133     0.228
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
    files = ("model.safetensors", "config.json", "preprocessor_config.json")
    digests = [hashlib.sha256((complete / name).read_bytes()).hexdigest()[:12] for name in files]
    wanted = REPORT.format(folder=complete, digests=digests)
    assert printed.out[: len(wanted)] == wanted
    versions = printed.out.removeprefix(wanted)
    assert versions.startswith(
        f"versions       videomae-jax {vm.__version__}, jax {jax.__version__}"
    )
    assert "warning" not in versions
    assert max(map(len, printed.out.replace(str(complete), "").splitlines())) <= 100
    assert printed.err == ""
    assert listing(complete.parent) == before


def test_the_report_is_written(complete, tmp_path):
    assert run(complete, tmp_path / "out") == 0
    loaded, report = vm.load(tmp_path / "out"), read(tmp_path / "out" / "conversion.json")
    assert loaded.conversion == report
    assert loaded.labels.names == tuple(NAMES)
    assert read(tmp_path / "out" / "labels.json") == NAMES
    assert loaded.preprocess.image_mean == tuple(PREPROCESSOR["image_mean"])
    assert report["format"] == "videomae_jax/conversion/2"
    files = report["source"].pop("files")
    names = ["model.safetensors", "config.json", "preprocessor_config.json"]
    assert [file["name"] for file in files] == names
    assert report["source"] == {
        "path": str(complete),
        "hub": None,
        "layout": "huggingface",
        "entry": None,
        "ignored_entries": [],
        "averaged_entry": None,
    }
    parameters = sum(leaf.size for leaf in jax.tree.leaves(loaded.params))
    # small with 7 classes: 393 * 384 fewer parameters, and 393 fewer biases.
    nearest = {"name": "small", "parameters": 22_033_936 - 393 * 385}
    assert report["network"] == {
        "architecture": "VideoClassifier",
        "parameters": parameters,
        "nearest_variant": nearest,
        "heads": 2,
        "head_dim": 12,
        "trained_head_dim": None,
        "layer_norm_eps": {"blocks": 1e-12, "fc_norm": 1e-5},
        "dtype": "float32",
        "assumed": [],
        "overrides": {},
        "config": TINY.to_dict(),
    }
    assert report["preprocessing"] == {
        "source": "preprocessor_config.json",
        "description": loaded.preprocess.describe(),
        "original": Preprocess.original(TINY.image_size).describe(),
        "differs_in": ["resize"],
    }
    assert report["labels"] == {"source": "config.json", "count": 7, "label_map": None}
    tensors = {"read": 51, "mapped": 51, "ignored": [], "dtypes": {"F32": 51}}
    assert report["tensors"] == tensors
    assert (report["verification"], report["warnings"]) == (None, [])
    assert report["versions"]["jax"] == jax.__version__
    assert report["versions"]["videomae-jax"] == vm.__version__


def test_the_report_of_a_pretrainer_shows_its_decoder(tmp_path, capsys):
    assert run(write_folder(tmp_path / "folder", architecture="VideoPretrainer")) == 0
    out = capsys.readouterr().out
    assert "\ndecoder        20 wide, 2 layers, 5 heads of 4\n" in out
    assert "\nLayerNorm eps  1e-12 blocks, 1e-05 decoder.norm\n" in out
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
    out = unfolded(capsys.readouterr().out)
    assert "\nheads 16 of 24 (!) where training had 6 of 64: see the warning below\n" in out
    assert "warning: 16 heads of 24: models 384 wide were trained" in out
    assert "with 6 heads of 64" in out
    assert "The published config of the small models says 16" in out
    assert "Convert again with --num-heads 6 and compare." in out


def test_other_heads_than_a_wider_model_has_are_a_warning(tmp_path, capsys):
    config = dataclasses.replace(SMALL_WIDTH, hidden_size=768, intermediate_size=8)
    assert run(write_folder(tmp_path / "folder", config=config)) == 0
    out = unfolded(capsys.readouterr().out)
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
    found = convert(
        path, Request(overrides={"image_size": (12, 20), "num_frames": 6})
    ).network.config
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
    found = convert(
        path, Request(overrides={"image_size": (12, 20), "num_frames": 6})
    ).network.config
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


LOAD = """
import sys
import videomae_jax as vm
for directory in sys.argv[1:]:
    try:
        vm.load(directory)
    except ValueError as error:
        print(error)
"""


def test_a_directory_that_was_cut_short_is_one_line(folder, tmp_path):
    assert run(folder, tmp_path / "out") == 0
    copies = []
    for file in filter(Path.is_file, (tmp_path / "out" / "params").rglob("*")):
        for kept in {0, file.stat().st_size // 2, file.stat().st_size - 1} - {-1}:
            if kept == file.stat().st_size:
                continue
            copies.append(tmp_path / f"copy {len(copies)}")
            shutil.copytree(tmp_path / "out", copies[-1])
            (copies[-1] / file.relative_to(tmp_path / "out")).write_bytes(file.read_bytes()[:kept])
    command = [sys.executable, "-c", LOAD, *map(str, copies)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(copies) > 10
    for line, copy in zip(lines, copies, strict=True):
        assert line.startswith(f"{copy}/params/")
        assert line.endswith(" were written; copy the directory or convert the source again")


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
    # An empty one of the format before zips: magic number, protocol, system, content, storages.
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
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


def test_memory_stays_within_its_bound(tmp_path):
    assert_memory_within_bound(tmp_path, "safetensors")
