"""Checkpoints converted on first use: once for a content, by one process, whole or not at all."""

import dataclasses
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest

import videomae_jax as vm
from convert import cache, job
from tests.configs import TINY
from tests.folders import random_tensors, run, write_folder, write_json, write_original
from tests.hub_cache import COMMIT, write_repository
from tests.test_convert import SMALL_WIDTH
from videomae_jax import inference
from videomae_jax.checkpoint import CheckpointError

ROOT = Path(__file__).parents[1]
# What an original file is taken to be.
WIDE = dataclasses.replace(SMALL_WIDTH, image_size=(224, 224), num_frames=16, num_attention_heads=6)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "videomae_jax"


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


def kept(home):
    """The converted directories in the cache."""
    return sorted(path for path in (home / "converted").iterdir() if path.is_dir())


def never(*arguments, **options):
    raise AssertionError("converted, or even read, twice")


def test_a_folder_is_converted_once(home, folder, monkeypatch):
    first = vm.load(folder)
    assert first.config == TINY
    (directory,) = kept(home)
    monkeypatch.setattr(job, "convert", never)
    monkeypatch.setattr(cache, "open_source", never)
    second = vm.load(str(folder))
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert cache.converted(folder) == directory
    assert second.conversion["source"]["path"] == str(folder)


def test_the_content_is_the_key_not_the_path(home, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    assert cache.converted(folder) == cache.converted(tmp_path / "copy")
    assert len(kept(home)) == 1


def test_the_name_of_a_weight_file_is_not_content(home, tmp_path):
    first = write_original(tmp_path / "first.safetensors", WIDE)
    (tmp_path / "elsewhere").mkdir()
    second = shutil.copy(first, tmp_path / "elsewhere" / "second.safetensors")
    assert cache.converted(first) == cache.converted(second)


class Watch:
    """The names of files that Python opens, while it is entered."""

    def __init__(self):
        self.names: list[str] | None = None
        sys.addaudithook(self._note)

    def _note(self, event, arguments):
        if event == "open" and self.names is not None:
            self.names.append(str(arguments[0]))

    def __enter__(self):
        self.names = []
        return self.names

    def __exit__(self, *error):
        self.names = None


# An audit hook can't be taken away again, so there is one.
WATCH = Watch()


def test_weights_that_are_known_are_not_read_again(home, folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    paths = (folder, copy, copy / "model.safetensors")
    with WATCH as names:
        directories = {cache.converted(path) for path in paths}
    assert any(name.endswith("model.safetensors") for name in names)
    with WATCH as names:
        assert {cache.converted(path) for path in paths} == directories
    assert any(name.endswith("conversion.json") for name in names)
    assert not any(name.endswith("model.safetensors") for name in names)
    (copy / "model.safetensors").touch()
    with WATCH as names:
        assert cache.converted(copy) in directories
    assert str(copy / "model.safetensors") in names


def test_a_change_that_keeps_size_and_time_is_seen(home, folder):
    first = cache.converted(folder)
    file = folder / "model.safetensors"
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_mtime_ns == stat.st_mtime_ns
    assert cache.converted(folder) != first


def test_a_source_that_changes_meanwhile_is_not_kept(home, folder, monkeypatch):
    right = job.convert

    def change(path, request):
        sizes = {"size": {"height": 12, "width": 20}, "do_center_crop": False}
        write_json(path / "preprocessor_config.json", sizes)
        return right(path, request)

    monkeypatch.setattr(job, "convert", change)
    with pytest.raises(CheckpointError, match="changed while it was converted; try again"):
        vm.load(folder)
    assert kept(home) == []


@pytest.mark.parametrize("change", ["weights", "config", "preprocessor"])
def test_another_content_is_another_directory(home, folder, tmp_path, change):
    first = cache.converted(folder)
    other = write_folder(tmp_path / "other", num_attention_heads=3 if change == "config" else 2)
    if change == "preprocessor":
        text = '{"size": {"shortest_edge": 20}, "crop_size": {"height": 12, "width": 20}}'
        (other / "preprocessor_config.json").write_text(text)
    if change == "weights":
        file = other / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-4:] = np.float32(0.5).tobytes()
        file.write_bytes(content)
    # In the same place, too: what was remembered of that is no longer so.
    shutil.rmtree(folder)
    other.rename(folder)
    assert cache.converted(folder) != first
    assert len(kept(home)) == 2


def test_a_weight_file_is_a_source(home, tmp_path):
    path = write_original(tmp_path / "model.safetensors", WIDE)
    loaded = vm.load(path)
    assert loaded.config.num_attention_heads == 6
    assert loaded.conversion["source"]["layout"] == "original"


def test_an_id_is_a_source(home, folder, tmp_path, monkeypatch):
    hub_cache = tmp_path / "hub"
    write_repository(hub_cache, "org/tiny", folder)
    right = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda *args, **options: right(*args, cache_dir=str(hub_cache), **options),
    )
    loaded = vm.load("org/tiny")
    assert loaded.conversion["source"]["hub"] == {"id": "org/tiny", "revision": COMMIT}
    jax.tree.map(np.testing.assert_array_equal, loaded.params, vm.load(folder).params)
    assert len(kept(home)) == 1
    with pytest.raises(CheckpointError, match="org/tiny: no path here, and on the hub it is out"):
        vm.load("org/tiny", revision="v2")


def test_warnings_are_logged_when_it_is_converted_and_not_again(home, tmp_path, caplog):
    folder = write_folder(tmp_path / "small", config=SMALL_WIDTH)
    caplog.set_level(logging.INFO)
    vm.load(folder)
    texts = [record.getMessage() for record in caplog.records if record.name == "convert.cache"]
    assert texts[0].startswith(f"converting {folder} (once; kept in {home}")
    assert any("16 heads of 24" in text for text in texts)
    caplog.clear()
    vm.load(folder)
    assert not [record for record in caplog.records if record.name == "convert.cache"]


def test_the_heads_may_be_said_at_loading(home, tmp_path):
    folder = write_folder(tmp_path / "small", config=SMALL_WIDTH)
    assert vm.load(folder).config.num_attention_heads == 16
    assert vm.load(folder, num_heads=6).config.num_attention_heads == 6
    assert run(folder, tmp_path / "out") == 0
    assert vm.load(tmp_path / "out", num_heads=6).config.head_dim == 64
    with pytest.raises(
        ValueError, match="num_heads must divide the width of the model, 384, got 7"
    ):
        vm.load(tmp_path / "out", num_heads=7)


# --- damage ---------------------------------------------------------------------------------------


def test_a_directory_without_its_config_is_made_again(home, folder):
    directory = cache.converted(folder)
    (directory / "config.json").unlink()
    assert cache.converted(folder) == directory
    assert vm.load(folder).config == TINY
    assert [path for path in (home / "converted").iterdir() if path.name.startswith(".")] == []


def weights_of(directory):
    """The file with most of the weights."""
    files = [file for file in (directory / "params").rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def flip_a_bit(directory):
    file = weights_of(directory)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x40
    file.write_bytes(content)


def cut_short(directory):
    os.truncate(weights_of(directory), 1000)


def cut_short_without_a_trace(directory):
    file = weights_of(directory)
    stat = file.stat()
    os.truncate(file, 1000)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lose_a_file(directory):
    weights_of(directory).unlink()


def change_the_config(directory):
    fields = json.loads((directory / "config.json").read_text())
    write_json(directory / "config.json", fields | {"num_attention_heads": 3})


def empty_the_report(directory):
    write_json(directory / "conversion.json", [])


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        cut_short,
        cut_short_without_a_trace,
        lose_a_file,
        change_the_config,
        empty_the_report,
    ],
)
def test_damage_that_reads_well_is_seen(home, folder, damage):
    first = vm.load(folder)
    (directory,) = kept(home)
    damage(directory)
    # By the cache, before any library reads it.
    assert cache.converted(folder) == directory
    second = vm.load(directory)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert second.config == TINY
    assert kept(home) == [directory]


def test_a_removal_that_was_cut_short_is_finished(home, folder, monkeypatch):
    directory = cache.converted(folder)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
        flip_a_bit(directory)
        assert cache.converted(folder) == directory
    assert len(kept(home)) == 2
    flip_a_bit(directory)
    assert cache.converted(folder) == directory
    assert kept(home) == [directory]


def test_a_bit_that_flipped_on_the_disk_is_seen_when_asked(home, folder):
    directory = cache.converted(folder)
    assert not cache.forget_damaged(directory)
    assert directory.is_dir()
    file = weights_of(directory)
    stat = file.stat()
    flip_a_bit(directory)
    # No time tells of it.
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert cache.forget_damaged(directory)
    assert kept(home) == []


def test_what_is_whole_is_not_made_again_for_other_failures(home, folder, monkeypatch):
    vm.load(folder)

    def fail(*arguments):
        raise CheckpointError("no memory, say")

    monkeypatch.setattr(inference, "load_params", fail)
    monkeypatch.setattr(job, "convert", never)
    with pytest.raises(CheckpointError, match="no memory, say"):
        vm.load(folder)


def test_damaged_weights_are_made_again(home, folder):
    first = vm.load(folder)
    (directory,) = kept(home)
    for file in (directory / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    second = vm.load(folder)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../folder", b"0" * 64, b"x" * 1000])
def test_a_damaged_memory_is_not_believed(home, folder, content):
    directory = cache.converted(folder)
    (seen,) = (home / "seen").iterdir()
    key = seen.read_bytes()
    seen.write_bytes(content)
    assert cache.converted(folder) == directory
    assert seen.read_bytes() in (key, content)


def test_a_cache_that_can_not_be_written(tmp_path, folder, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"set XDG_CACHE_HOME to another folder, or convert"):
        vm.load(folder)


def test_a_cache_that_can_only_be_read_is_of_use(home, folder):
    directory = cache.converted(folder)
    shutil.rmtree(home / "seen")
    (home / "seen").touch()
    assert cache.converted(folder) == directory


def test_a_user_without_a_home_is_told_the_variable(folder, monkeypatch):
    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", fail)
    with pytest.raises(CheckpointError, match=r"no home to keep .*; set XDG_CACHE_HOME"):
        vm.load(folder)


@pytest.mark.parametrize("said", ["", "relative/path"])
def test_a_cache_home_that_is_not_absolute_counts_as_unset(said, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", said)
    assert cache.cache_home() == Path.home() / ".cache" / "videomae_jax"


def test_a_bad_source_is_refused_and_not_kept(home, folder):
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        vm.load(folder)
    assert not home.exists()


def test_several_problems_are_one_line(home, tmp_path):
    tensors = random_tensors()
    del tensors["classifier.bias"], tensors["fc_norm.weight"]
    folder = write_folder(tmp_path / "folder", tensors)
    with pytest.raises(
        CheckpointError, match=r"fc_norm.*; .*classifier|classifier.*; .*fc_norm"
    ) as e:
        vm.load(folder)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("path", ["gone", "gone/deeper/still", "./org/name"], ids=lambda path: path)
def test_a_path_that_is_nothing(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="doesn't exist; make one"):
        vm.load(path)


# --- several processes ----------------------------------------------------------------------------

LOAD = "import sys, videomae_jax as vm; print(vm.load(sys.argv[1]).config.hidden_size)"
# The same, killed when the weights are written and config.json is not.
KILLED = """
import os, signal, sys
import videomae_jax as vm
from videomae_jax import checkpoint

def kill(path, content):
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.write_json = kill
vm.load(sys.argv[1])
"""


def start(code, folder):
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_make_one_directory(home, folder):
    processes = [start(LOAD, folder) for _ in range(2)]
    for process in processes:
        out, err = process.communicate()
        assert (process.returncode, out) == (0, "24\n"), err
    (directory,) = kept(home)
    report = json.loads((directory / "conversion.json").read_text())
    assert report["source"]["path"] == str(folder)


def test_what_another_process_made_meanwhile_is_taken(home, folder, tmp_path, monkeypatch):
    made = cache.converted(folder)
    made.rename(tmp_path / "made")
    right = cache._lock

    def wait(directory):
        (tmp_path / "made").rename(directory)
        return right(directory)

    monkeypatch.setattr(cache, "_lock", wait)
    monkeypatch.setattr(job, "convert", never)
    assert cache.converted(folder) == made


def test_a_killed_process_blocks_nobody(home, folder):
    process = start(KILLED, folder)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    (left,) = kept(home)
    assert left.name.startswith(".")
    process = start(LOAD, folder)
    out, err = process.communicate()
    assert (process.returncode, out) == (0, "24\n"), err
    # Nothing of the killed one takes room for ever.
    assert [path.name for path in kept(home)] == [left.name.split(".")[1]]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_at_any_moment(home, folder, seed):
    process = start(LOAD, folder)
    while process.poll() is None and not list(home.glob("converted/*.lock")):
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.5))
    process.kill()
    process.communicate()
    whole = [path for path in kept(home) if not path.name.startswith(".")]
    for directory in whole:
        vm.load(directory)
    assert vm.load(folder).config == TINY
    assert len(kept(home)) == 1
