import json
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import videomae_jax as vm
from examples.quickstart.clip import make_clip
from tests.configs import TINY, random_params
from tests.folders import write_folder
from tests.hub_cache import write_repository
from tests.test_convert import SMALL_WIDTH
from videomae_jax import inference, video
from videomae_jax.__main__ import main
from videomae_jax.checkpoint import Description, save
from videomae_jax.inference import classify, load
from videomae_jax.labels import Labels
from videomae_jax.model import VideoClassifier, abstract_params
from videomae_jax.processing import Preprocess
from videomae_jax.video import read_clip

NAMES = ("left", "right", 'ärmel, "zu"', "up", "down", "in", "out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    save(
        folder / "model",
        random_params(abstract_params(VideoClassifier(TINY))),
        Description(
            architecture="VideoClassifier",
            config=TINY,
            preprocess=Preprocess.default(TINY.image_size),
            labels=Labels(NAMES),
            conversion={},
        ),
    )
    make_clip(folder / "clip.mp4")
    (folder / "text.mp4").write_text("not a video")
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_json_is_one_object_a_line(capsys):
    assert main(["classify", "clip.mp4", "clip.mp4", "--model", "model", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    found = json.loads(lines[0])
    assert list(found) == ["video", "model", "predictions"]
    assert (found["video"], found["model"]) == ("clip.mp4", "model")
    assert [list(entry) for entry in found["predictions"]] == [
        ["index", "label", "probability"]
    ] * 5
    frames = read_clip("clip.mp4", TINY.num_frames)
    for entry, wanted in zip(found["predictions"], classify(load("model"), frames), strict=True):
        assert (entry["index"], entry["label"]) == (wanted.index, wanted.label)
        assert NAMES[entry["index"]] == entry["label"]
        np.testing.assert_allclose(entry["probability"], wanted.probability, rtol=1e-5)


def test_text_is_the_clip_and_a_line_a_class(capsys):
    assert main(["classify", "clip.mp4", "--model", "model", "--top-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "clip.mp4"
    assert len(lines) == 4
    assert all(" %  " in line for line in lines[1:])


def test_all_classes_sum_to_one(capsys):
    assert main(["classify", "clip.mp4", "--model", "model", "--top-k", "99", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["predictions"]
    assert len(entries) == 7
    assert sum(entry["probability"] for entry in entries) == pytest.approx(1.0)


def test_the_sampling_rule_changes_what_is_seen(capsys):
    outputs = set()
    for rule in ("uniform", "linspace", "kinetics", "ssv2"):
        assert main(["classify", "clip.mp4", "--model", "model", "--sampling", rule, "--json"]) == 0
        outputs.add(capsys.readouterr().out)
    assert len(outputs) == 4


def test_the_first_clip_is_decoded_while_the_model_is_loaded(capsys, monkeypatch):
    decoding = threading.Event()
    read, load_model = video.read_clip, inference.load

    def read_clip(*arguments, **options):
        decoding.set()
        return read(*arguments, **options)

    def load_after_decoding(*arguments, **options):
        assert decoding.wait(30)
        return load_model(*arguments, **options)

    monkeypatch.setattr(video, "read_clip", read_clip)
    monkeypatch.setattr(vm, "load", load_after_decoding, raising=False)
    assert main(["classify", "clip.mp4", "--model", "model"]) == 0
    assert capsys.readouterr().out.startswith("clip.mp4\n")


def test_a_bad_model_is_the_only_complaint(folder, tmp_path, capsys):
    shutil.copytree(folder / "model", tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "params")
    assert main(["classify", "text.mp4", "nowhere", "--model", str(tmp_path / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the weights can't be read" in line


def test_a_bad_clip_costs_a_line_and_the_others_are_classified(capsys):
    arguments = ["classify", "nowhere.mp4", "clip.mp4", "text.mp4", "--model", "model", "--json"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert [json.loads(line)["video"] for line in output.out.splitlines()] == ["clip.mp4"]
    errors = output.err.splitlines()
    assert len(errors) == 2
    for line, name in zip(errors, ("nowhere.mp4", "text.mp4"), strict=True):
        assert line.startswith("videomae: error: ")
        assert name in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["classify", "clip.mp4", "--model", "nowhere"], "nowhere doesn't exist"),
        (["classify", "clip.mp4", "--model", "clip.mp4"], "clip.mp4 is a file"),
        (["classify", "clip.mp4", "--model", "."], "no config.json"),
        (["classify", "clip.mp4", "--model", "model", "--top-k", "0"], "--top-k"),
        (["classify", "clip.mp4", "--model", "model", "--sampling-rate", "0"], "--sampling-rate"),
    ],
)
def test_a_bad_request_is_one_line_and_exit_code_2(capsys, arguments, words):
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("videomae: error: ")
    assert len(output.err.splitlines()) == 1
    assert words in output.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["paint"],
        ["classify"],
        ["classify", "clip.mp4", "--model", "model", "--sampling", "guess"],
        ["classify", "clip.mp4", "--model", "model", "--top-k", "many"],
    ],
)
def test_a_bad_command_line_is_one_line_and_exit_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("videomae: error: ")
    assert len(error.splitlines()) == 1


# --- checkpoints for PyTorch ----------------------------------------------------------------------


@pytest.fixture
def source(folder, tmp_path, monkeypatch):
    """A Hugging Face folder that no cache knows, with 16 heads where 6 were trained."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_folder(tmp_path / "source", config=SMALL_WIDTH)


def classified(capsys, *arguments):
    """The predictions of the clip, and the lines on stderr."""
    assert main(["classify", "clip.mp4", "--json", *map(str, arguments)]) == 0
    output = capsys.readouterr()
    return json.loads(output.out), output.err.splitlines()


def test_a_folder_is_converted_once_and_says_so(source, tmp_path, capsys):
    found, lines = classified(capsys, "--model", source)
    assert found["model"] == str(source)
    (directory,) = (tmp_path / "cache" / "videomae_jax" / "converted").glob("*/")
    assert lines[0] == f"videomae: converting {source} (once; kept in {directory})"
    assert len(lines) == 4
    assert all(line.startswith("videomae: warning: ") for line in lines[1:])
    assert sum("16 heads of 24" in line for line in lines) == 1
    again, lines = classified(capsys, "--model", source)
    assert (again, lines) == (found, [])
    direct, lines = classified(capsys, "--model", directory)
    assert (direct["predictions"], lines) == (found["predictions"], [])


def test_heads_may_be_said(source, capsys):
    found, _ = classified(capsys, "--model", source, "--top-k", 7)
    other, lines = classified(capsys, "--model", source, "--top-k", 7, "--num-heads", 6)
    assert len(lines) == 3
    assert not any("heads of" in line for line in lines)
    assert found != other
    assert main(["classify", "clip.mp4", "--model", str(source), "--num-heads", "7"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("videomae: error: num_heads can't be 7: ")


def test_an_id_from_download_to_classes(folder, source, tmp_path):
    """Both commands as a user runs them, with nothing but the hub's cache on the disk."""
    write_repository(tmp_path / "hub", "org/small", source)
    environment = _environment() | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", *map(str, arguments)],
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            env=environment,
        )

    done = command("convert", "org/small", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    wanted = command("videomae_jax", "classify", "clip.mp4", "--model", tmp_path / "out")
    assert wanted.returncode == 0, wanted.stderr
    classify = ("videomae_jax", "classify", "clip.mp4", "--model", "org/small")
    first = command(*classify, "--revision", "main")
    assert (first.returncode, first.stdout) == (0, wanted.stdout)
    assert first.stderr.startswith("videomae: converting org/small (once; kept in ")
    again = command(*classify, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    assert json.loads(again.stdout)["model"] == "org/small"
    done = command(*classify, "--revision", "v2")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("videomae: error: org/small: no path here, and on the hub it is out of")
    assert "https://huggingface.co/org/small/tree/v2" in line


def test_the_command_as_a_user_runs_it(folder):
    command = [sys.executable, "-m", "videomae_jax", "classify"]
    done = subprocess.run(
        [*command, "clip.mp4", "text.mp4", "--model", "model"],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert done.returncode == 2
    assert done.stdout.splitlines()[0] == "clip.mp4"
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("videomae: error: text.mp4")


def _environment():
    import os
    from pathlib import Path

    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "JAX_PLATFORMS": "cpu"}
