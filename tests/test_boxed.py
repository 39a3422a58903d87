import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import videomae_jax as vm
from examples.motions import box as box_module
from examples.motions.box import main as put_in_box
from tests.batch_job import rows, run
from tests.clips import write_clip
from tests.folders import write_folder, write_json
from tests.test_inference import FRAMES, write
from videomae_jax import boxed
from videomae_jax.__main__ import main
from videomae_jax.checkpoint import CheckpointError

LABELS = {str(number): name for number, name in enumerate(("left", "right", *"cdefg"))}
SAID = "no --model given: using the boxed model 'motions' (7 kinds of motion; a toy"


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A stand-in for the folder that is shipped."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "box", id2label=LABELS, num_labels=None)
    preprocess = vm.Preprocess.default((12, 20)).to_dict()
    del preprocess["resize"]
    write_json(folder / "preprocessor_config.json", preprocess)
    monkeypatch.setattr(boxed, "FOLDER", folder)
    return folder


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", 12)


def test_it_is_loaded_when_nothing_is_said(box):
    checkpoint, wanted = vm.load(), vm.load(box)
    assert checkpoint.labels.names[:2] == ("left", "right")
    assert vm.classify(checkpoint, FRAMES) == vm.classify(wanted, FRAMES)


def test_classify_uses_it_and_says_so(box, clip, capsys):
    assert main(["classify", str(clip), "--model", str(box)]) == 0
    wanted = capsys.readouterr()
    assert SAID not in wanted.err
    assert main(["classify", str(clip)]) == 0
    found = capsys.readouterr()
    assert found.out == wanted.out
    lines = [line for line in found.err.splitlines() if SAID in line]
    assert len(lines) == 1
    assert lines[0].startswith("videomae: no --model")


def test_so_does_the_batch_job(box, clip, tmp_path, capsys):
    assert run(clip.parent / "*.mp4", tmp_path / "one") == 0
    assert f"tpu: {SAID}" in capsys.readouterr().err
    assert run(clip.parent / "*.mp4", tmp_path / "two", "--model", box) == 0
    assert SAID not in capsys.readouterr().err
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == 1
    for row, wanted in zip(one["labels"], two["labels"], strict=True):
        np.testing.assert_array_equal(row, wanted)


@pytest.mark.parametrize("missing", boxed.FILES)
def test_an_installation_without_it_says_so(box, clip, missing, capsys):
    (box / missing).unlink()
    with pytest.raises(CheckpointError, match=f"lacks the boxed model 'motions' \\({missing}"):
        vm.load()
    assert main(["classify", str(clip)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("videomae: error: no model is given, and this installation lacks")
    # One that is named needs no box.
    assert boxed.model_or_boxed("anything") == "anything"


def test_a_damaged_one_is_one_line(box, clip, capsys):
    (box / "config.json").write_text("{", encoding="utf-8")
    assert main(["classify", str(clip)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json: is damaged" in line


def test_a_trained_model_is_put_in_the_box(tmp_path, monkeypatch, capsys):
    directory, out = write(tmp_path / "model"), tmp_path / "out"
    assert put_in_box([str(directory), str(out)]) == 0
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert sorted(sizes) == sorted(boxed.FILES)
    assert f"{sum(sizes.values()):,} bytes" in capsys.readouterr().out
    for name in ("config.json", "preprocessor_config.json"):
        assert str(tmp_path) not in (out / name).read_text(encoding="utf-8")
    monkeypatch.setattr(boxed, "FOLDER", out)
    found, wanted = vm.classify(vm.load(), FRAMES), vm.classify(vm.load(directory), FRAMES)
    assert [each.label for each in found] == [each.label for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.probability == pytest.approx(other.probability, abs=0.02)


@pytest.mark.parametrize(
    ("architecture", "largest", "words"),
    [
        ("VideoEncoder", 10**6, "box a classifier"),
        ("VideoClassifier", 1000, "more than 1,000"),
        (None, 10**6, "doesn't exist"),
    ],
)
def test_what_does_not_belong_in_the_box_is_refused(
    tmp_path, monkeypatch, capsys, architecture, largest, words
):
    directory = tmp_path / "model"
    if architecture is not None:
        write(directory, architecture)
    monkeypatch.setattr(box_module, "LARGEST", largest)
    with pytest.raises(SystemExit) as stop:
        put_in_box([str(directory), str(tmp_path / "out")])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "out").exists()


def test_it_lies_in_the_package():
    package = Path(vm.__file__).parent
    assert boxed.FOLDER.relative_to(package) == Path("boxed_models", "motions")


@pytest.mark.skipif(not boxed.FOLDER.is_dir(), reason="this checkout has no trained model yet")
def test_what_is_shipped_is_small_and_works():
    sizes = {path.name: path.stat().st_size for path in boxed.FOLDER.iterdir()}
    assert set(boxed.FILES) <= set(sizes)
    assert sum(sizes.values()) <= 4 * 2**20
    fields = json.loads((boxed.FOLDER / "config.json").read_text(encoding="utf-8"))
    assert len(fields["id2label"]) >= 12
    assert "/home" not in json.dumps(fields)
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    code = "import videomae_jax as vm; print(len(vm.load().labels))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert int(done.stdout) == len(fields["id2label"])
