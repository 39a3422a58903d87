"""Whole or not at all, and nothing left of those who were killed."""

import os
import subprocess
import sys

import pytest

from videomae_jax import writing
from videomae_jax.writing import CheckpointError, new_directory, new_file


def sibling_of(path, process, *, host=None, suffix=""):
    name = f".{path.name}.{host or writing._host()}-{process}-0123abcd{suffix}"
    return path.with_name(name)


@pytest.fixture
def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_directory_has_its_name_when_it_is_whole(tmp_path):
    with new_directory(tmp_path / "deep" / "out") as folder:
        (folder / "file").write_text("whole")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "file").read_text() == "whole"


def test_a_file_has_its_name_when_it_is_whole(tmp_path):
    with new_file(tmp_path / "model.pth") as file:
        assert file.suffix == ".pth"
        file.write_text("whole")
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


@pytest.mark.parametrize("make", [new_directory, new_file])
def test_a_failure_leaves_nothing(tmp_path, make):
    def fail():
        with make(tmp_path / "out") as sibling:
            if make is new_file:
                sibling.touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [new_directory, new_file])
def test_someone_else_is_faster(tmp_path, make):
    def race():
        with make(tmp_path / "out") as sibling:
            if make is new_file:
                sibling.touch()
            (tmp_path / "out").mkdir()

    with pytest.raises(CheckpointError, match="exists"):
        race()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed(tmp_path, gone):
    out = tmp_path / "out"
    folder, file = sibling_of(out, gone), sibling_of(out, gone, suffix=".pth")
    folder.mkdir()
    (folder / "half").touch()
    file.touch()
    with new_directory(out):
        assert not folder.exists()
        assert not file.exists()


def test_what_belongs_to_others_stays(tmp_path, gone):
    out = tmp_path / "out"
    others = [
        sibling_of(out, os.getpid()),
        sibling_of(out, gone, host="elsewhere"),
        sibling_of(tmp_path / "out2", gone),
        tmp_path / f".out.{gone}",
        tmp_path / ".out.mine",
        tmp_path / "out.backup",
    ]
    for other in others:
        other.mkdir()
    with new_directory(out):
        pass
    assert set(tmp_path.iterdir()) == {*others, out}
