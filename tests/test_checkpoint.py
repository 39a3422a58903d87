import gc
import json
import re
import shutil

import jax
import numpy as np
import pytest

from tests.configs import TINY, random_params
from videomae_jax.checkpoint import (
    CheckpointError,
    Description,
    check_sizes,
    load_description,
    save,
)
from videomae_jax.labels import Labels
from videomae_jax.model import VideoClassifier, abstract_params
from videomae_jax.processing import Preprocess
from videomae_jax.weights import load_params

LIKE = abstract_params(VideoClassifier(TINY))
PARAMS = random_params(LIKE)
DESCRIPTION = Description(
    architecture="VideoClassifier",
    config=TINY,
    preprocess=Preprocess.default(TINY.image_size),
    labels=Labels(tuple("abcdefg")),
    conversion={"format": "test"},
)


@pytest.fixture
def directory(tmp_path):
    save(tmp_path / "model", PARAMS, DESCRIPTION)
    return tmp_path / "model"


def test_what_is_saved_is_what_is_loaded(directory):
    assert load_description(directory) == DESCRIPTION
    loaded = load_params(directory, LIKE)
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    jax.tree.map(np.testing.assert_array_equal, loaded, PARAMS)
    names = {path.name for path in directory.iterdir()}
    assert names == {"config.json", "processing.json", "labels.json", "conversion.json", "params"}
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


def test_the_folder_of_a_run_names_its_model(tmp_path):
    save(tmp_path / "run" / "final", PARAMS, DESCRIPTION)
    with pytest.raises(CheckpointError, match=r"no config.json\); it is a training run's, whose"):
        load_description(tmp_path / "run")


def test_the_likeness_carries_the_sharding(directory):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    placed = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), LIKE
    )
    loaded = load_params(directory, placed)
    assert all(leaf.sharding == sharding for leaf in jax.tree.leaves(loaded))


def test_an_existing_directory_is_refused_and_untouched(directory):
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(CheckpointError, match=r"model exists and is left as it is"):
        save(directory, PARAMS, DESCRIPTION)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    assert [path.name for path in directory.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["file", "empty directory", "dangling link"])
def test_whatever_stands_in_the_way_stays(tmp_path, kind):
    path = tmp_path / "model"
    {
        "file": lambda: path.write_text("mine"),
        "empty directory": path.mkdir,
        "dangling link": lambda: path.symlink_to(tmp_path / "nowhere"),
    }[kind]()
    with pytest.raises(CheckpointError, match="exists"):
        save(path, PARAMS, DESCRIPTION)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_failed_proof_leaves_nothing(tmp_path):
    def prove(folder):
        assert not (folder / "config.json").exists()
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        save(tmp_path / "model", PARAMS, DESCRIPTION, prove=prove)
    assert list(tmp_path.iterdir()) == []


def test_a_proof_reads_what_was_written_and_is_kept(tmp_path):
    def prove(folder):
        jax.tree.map(np.testing.assert_array_equal, load_params(folder, LIKE), PARAMS)
        return {"verification": 3}

    save(tmp_path / "model", PARAMS, DESCRIPTION, prove=prove)
    conversion = load_description(tmp_path / "model").conversion
    assert conversion == {"format": "test", "verification": 3}


def test_parents_are_made_and_files_in_the_way_named(tmp_path):
    save(tmp_path / "a" / "b" / "model", PARAMS, DESCRIPTION)
    assert (tmp_path / "a" / "b" / "model" / "config.json").is_file()
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file/model: can't be made"):
        save(tmp_path / "file" / "model", PARAMS, DESCRIPTION)


def test_weights_that_can_not_be_written_are_one_line_and_leave_nothing(tmp_path, monkeypatch):
    from orbax.checkpoint import v1 as ocp

    def save_on_a_full_disk(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp, "save", save_on_a_full_disk)
    with pytest.raises(CheckpointError, match=r"can't be written .*No space left"):
        save(tmp_path / "model", PARAMS, DESCRIPTION)
    assert list(tmp_path.iterdir()) == []


def _edit(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "doesn't exist; make one: python -m convert"),
        (lambda d: (d / "config.json").unlink(), "no config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json: not valid JSON"),
        (lambda d: (d / "config.json").write_text("[]"), "has format None"),
        (lambda d: _edit(d / "config.json", format="2"), "format '2', wanted 'videomae_jax/1'"),
        (lambda d: _edit(d / "config.json", hidden_size=25), "hidden_size 25 is not a multiple"),
        (lambda d: _edit(d / "config.json", colour=1), "unknown config entry 'colour'"),
        (lambda d: (d / "labels.json").unlink(), "labels.json: can't be read"),
        (lambda d: (d / "labels.json").write_text("3"), "convert the source again"),
        (lambda d: (d / "labels.json").write_text('["a"]'), "labels.json names 1 classes"),
        (lambda d: (d / "processing.json").write_text("{}"), "convert the source again"),
    ],
)
def test_a_damaged_directory_is_named_in_one_line(directory, damage, words):
    damage(directory)
    with pytest.raises(CheckpointError) as error:
        load_description(directory)
    assert words in str(error.value)
    assert str(directory) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["gone", "one gone", "empty", "other shape", "other names"])
def test_weights_that_can_not_be_read_are_named_in_one_line(directory, damage):
    like = LIKE
    if damage == "one gone":
        shutil.rmtree(directory / "params" / "state" / "fc_norm.scale")
    elif damage == "gone":
        shutil.rmtree(directory / "params")
    elif damage == "empty":
        for path in (directory / "params").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    elif damage == "other shape":
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), LIKE)
    else:
        like = {"nothing": LIKE["fc_norm"]}
    with pytest.raises(CheckpointError, match="params: the weights can't be read") as error:
        load_params(directory, like)
    assert "\n" not in str(error.value)
    # Coroutines that nobody awaited are an error of this test, not of the next one.
    gc.collect()


def test_an_array_of_another_shape_is_named(directory):
    like = dict(LIKE) | {"fc_norm": {"bias": LIKE["fc_norm"]["bias"]}}
    with pytest.raises(CheckpointError, match=r"fc_norm/scale: \[\d+\] is stored where nothing"):
        load_params(directory, like)


WRITTEN = {"written": [{"name": "params/a", "bytes": 1000, "sha256": ""}]}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (None, "can't be read (No such file"),
        (999, "has 999 bytes, 1,000 were written"),
        (0, "has 0"),
    ],
)
def test_a_file_that_is_not_as_long_as_was_written(tmp_path, size, words):
    (tmp_path / "params").mkdir()
    if size is not None:
        (tmp_path / "params" / "a").write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'params' / 'a'}: {words}")):
        check_sizes(tmp_path, WRITTEN)


def test_a_report_without_sizes_says_nothing(tmp_path):
    for report in ({}, {"written": None}, {"written": []}):
        check_sizes(tmp_path, report)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "a").write_bytes(bytes(1000))
    check_sizes(tmp_path, WRITTEN)
