"""Compiled programs are kept, found again, and never stale."""

import contextlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.monitoring
import numpy as np
import pytest

from examples.quickstart.clip import make_clip
from tests.test_inference import write
from videomae_jax import compile_cache
from videomae_jax.__main__ import main
from videomae_jax.compile_cache import cache_key, drop_oldest, use_compile_cache

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache folder of a test; no settings of its user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert jax.config.jax_compilation_cache_dir is None
    yield tmp_path / "cache" / "videomae_jax" / "compiled"
    assert jax.config.jax_compilation_cache_dir is None


@pytest.fixture
def seen():
    """How often JAX found a program in its cache, and how often it kept one."""
    counts = {"cache_hits": 0, "cache_misses": 0}

    def count(event, **_):
        name = event.rpartition("/")[2]
        if name in counts:
            counts[name] += 1

    jax.monitoring.register_event_listener(count)
    yield counts
    jax.monitoring.unregister_event_listener(count)


def program(x):
    return x * 3.0 + 2.0


def run(function=program):
    """Compile as a process does that has just started."""
    jax.clear_caches()
    with use_compile_cache():
        np.testing.assert_array_equal(jax.jit(function)(np.ones(5, np.float32)), np.full(5, 5.0))


def entries(home):
    return sorted(home.rglob("*-cache"))


def test_the_second_run_finds_what_the_first_has_compiled(home, seen):
    run()
    assert seen == {"cache_hits": 0, "cache_misses": 1}
    (entry,) = entries(home)
    assert entry.parent == home / cache_key()
    run()
    assert seen == {"cache_hits": 1, "cache_misses": 1}
    assert entries(home) == [entry]


def test_nothing_is_kept_before_or_after(home):
    run()
    jax.clear_caches()
    jax.jit(lambda x: x - 7.0)(1.0)
    assert len(entries(home)) == 1


# --- never stale ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["program", "flags", "jaxlib", "processor"])
def test_a_change_of_what_decides_about_a_program_is_a_miss(home, seen, monkeypatch, change):
    run()
    function = program
    if change == "program":

        def function(x):
            return x * 4.0 + 1.0
    elif change == "flags":
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2")
    elif change == "jaxlib":
        version = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda name: version(name) + ".1" * (name == "jaxlib")
        )
    else:
        monkeypatch.setattr(compile_cache, "_processor", lambda: ["another"])
    run(function)
    assert seen == {"cache_hits": 0, "cache_misses": 2}
    assert len(entries(home)) == 2


def test_the_key_follows_the_code_of_the_package(tmp_path, monkeypatch):
    copy = shutil.copytree(ROOT / "videomae_jax", tmp_path / "videomae_jax")
    monkeypatch.setattr(compile_cache, "__file__", str(copy / "compile_cache.py"))
    keys = [cache_key()]
    assert keys == [cache_key()]
    changed = copy / "kernels" / "batch_parallel.py"
    changed.write_bytes(changed.read_bytes().replace(b"a", b"b", 1))
    keys.append(cache_key())
    changed.rename(changed.with_name("parallel_batch.py"))
    keys.append(cache_key())
    (copy / "config.py").unlink()
    keys.append(cache_key())
    assert len(set(keys)) == 4


def test_the_key_is_the_same_in_every_process():
    code = "from videomae_jax.compile_cache import cache_key; print(cache_key())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == cache_key()


# --- what the user has set ------------------------------------------------------------------------


def test_a_folder_that_is_set_already_is_left_as_it_is(home, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    try:
        with use_compile_cache():
            assert jax.config.jax_compilation_cache_dir == str(tmp_path / "own")
            assert jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
    assert not home.exists()


def test_a_cache_that_is_switched_off_stays_so(home):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        run()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert not home.exists()


# --- damage ---------------------------------------------------------------------------------------


def truncate(entry):
    entry.write_bytes(entry.read_bytes()[:100])


def flip_a_bit(entry):
    content = bytearray(entry.read_bytes())
    content[len(content) // 2] ^= 4
    entry.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [truncate, flip_a_bit, lambda e: e.write_bytes(b""), lambda e: e.write_bytes(b"x" * 5000)],
    ids=["truncated", "a bit flipped", "empty", "other content"],
)
def test_a_damaged_program_is_compiled_again_and_the_cache_is_whole(
    home, seen, caplog, recwarn, damage
):
    run()
    damage(*entries(home))
    run()
    assert entries(home) == []
    run()
    assert seen["cache_hits"] == 0
    run()
    assert seen["cache_hits"] == 1
    assert (caplog.messages, list(recwarn)) == ([], [])


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs limits on files")
def test_a_full_disk_is_one_line(home, caplog):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with use_compile_cache():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            jax.jit(lambda x: x - 9.0)(1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        (entry,) = entries(home)
        assert entry.stat().st_size == 100
    (line,) = caplog.messages
    assert "File too large" in line
    assert "--no-compile-cache" in line
    assert entries(home) == []


@pytest.mark.parametrize("trouble", ["a file", "no home", "others' rights"])
def test_a_folder_that_can_not_be_used_is_one_line(home, tmp_path, monkeypatch, caplog, trouble):
    if trouble == "a file":
        (tmp_path / "cache").touch()
    elif trouble == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(Path, "home", _no_home)
    else:
        home.mkdir(parents=True)
        home.chmod(0o777)
    run()
    (line,) = caplog.messages
    assert "set XDG_CACHE_HOME" in line
    assert entries(tmp_path) == []


def _no_home():
    raise RuntimeError("Could not determine home directory.")


def test_the_folder_is_its_users_alone(home):
    run()
    for folder in (home, home / cache_key()):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_other_warnings_are_shown_as_ever(recwarn):
    with use_compile_cache():
        warnings.warn("something else", stacklevel=1)
    assert str(recwarn.pop(UserWarning).message) == "something else"


# --- size -----------------------------------------------------------------------------------------


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path):
    for age, name in enumerate(["new/a", "new/b", "old/c", "old/d"]):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        os.utime(path, (1e9 - age, 1e9 - age))
    drop_oldest(tmp_path, 400)
    assert len(list(tmp_path.rglob("?"))) == 4
    drop_oldest(tmp_path, 399)
    assert {path.name for path in tmp_path.rglob("?")} == {"a", "b", "c"}
    drop_oldest(tmp_path, 250)
    assert {path.name for path in tmp_path.rglob("*")} == {"new", "a", "b"}
    drop_oldest(tmp_path / "nowhere", 0)


def test_the_cache_does_not_grow_for_ever(home, monkeypatch):
    run()
    (entry,) = entries(home)
    monkeypatch.setattr(compile_cache, "LARGEST_CACHE", entry.stat().st_size - 1)
    with use_compile_cache():
        pass
    assert entries(home) == []


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    write(tmp_path / "model")
    make_clip(tmp_path / "clip.mp4")
    return ["classify", str(tmp_path / "clip.mp4"), "--model", str(tmp_path / "model"), "--json"]


def test_the_command_keeps_its_programs_unless_told_otherwise(home, arguments, capsys, seen):
    jax.clear_caches()
    assert main([*arguments, "--no-compile-cache"]) == 0
    assert not home.exists()
    jax.clear_caches()
    assert main(arguments) == 0
    kept = entries(home)
    assert len(kept) == seen["cache_misses"] > 0
    jax.clear_caches()
    assert main(arguments) == 0
    assert seen["cache_hits"] == len(kept)
    assert entries(home) == kept
    output = capsys.readouterr()
    assert output.err == ""
    assert len({json.dumps(json.loads(line)) for line in output.out.splitlines()}) == 1


def test_a_cache_that_can_not_be_used_is_one_line_of_the_command(tmp_path, arguments, capsys):
    (tmp_path / "cache").touch()
    assert main(arguments) == 0
    output = capsys.readouterr()
    assert len(json.loads(output.out)["predictions"]) == 5
    (line,) = output.err.splitlines()
    assert line.startswith("videomae: warning: compiled programs can't be kept (")


def test_a_warm_start_says_nothing(home, arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    outputs = []
    for flags in ("", "", "--xla_cpu_max_isa=AVX2"):
        before = entries(home)
        done = subprocess.run(
            [sys.executable, "-m", "videomae_jax", *arguments],
            check=False,
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=environment | ({"XLA_FLAGS": flags} if flags else {}),
        )
        assert (done.returncode, done.stderr) == (0, "")
        found = [entry["label"] for entry in json.loads(done.stdout)["predictions"]]
        outputs.append((found, len(entries(home)) - len(before)))
    assert outputs[0][1] > 0
    assert [kept for _, kept in outputs] == [outputs[0][1], 0, outputs[0][1]]
    assert len({tuple(found) for found, _ in outputs}) == 1


def test_the_display_of_warnings_is_put_back():
    show = warnings.showwarning
    with contextlib.suppress(ZeroDivisionError), use_compile_cache():
        assert warnings.showwarning is not show
        raise ZeroDivisionError
    assert warnings.showwarning is show
