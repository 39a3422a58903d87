"""A killed conversion leaves nothing that looks complete, and can be run again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import videomae_jax as vm
from tests.folders import run, write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "folder")


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


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
    """How long a conversion takes from start to end."""
    folder = tmp_path_factory.mktemp("timed")
    command = [sys.executable, "-m", "convert", write_folder(folder / "folder"), folder / "out"]
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def killed(command: list, seconds: float, seed: int) -> int:
    """Start a command and kill it at a random moment of so many seconds; its exit code."""
    process = subprocess.Popen(list(map(str, command)), cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        process.wait(random.Random(seed).uniform(0, seconds))
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait()


@pytest.mark.parametrize("seed", range(20))
def test_a_kill_at_any_moment(folder, tmp_path, seconds, seed):
    out = tmp_path / "out"
    code = killed([sys.executable, "-m", "convert", folder, out], 1.05 * seconds, seed)
    assert code in (0, -signal.SIGKILL)
    assert_nothing_looks_complete(tmp_path, out)
    if not out.exists():
        assert code == -signal.SIGKILL
        assert run(folder, out) == 0
    vm.load(out)


@pytest.mark.parametrize("seed", range(4))
def test_a_kill_while_writing(folder, tmp_path, seed):
    """Moments after the first byte was written, of which the test above may hit few."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "convert", str(folder), str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob(".out.*")):
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.kill()
    process.wait()
    assert_nothing_looks_complete(tmp_path, out)
    if not out.exists():
        assert run(folder, out) == 0
    vm.load(out)


@pytest.mark.parametrize("seed", range(6))
def test_a_kill_on_the_way_back(folder, tmp_path, seconds, seed):
    directory, out = tmp_path / "dir", tmp_path / "back"
    assert run(folder, directory) == 0
    back = [directory, out, "--to", "huggingface"]
    code = killed([sys.executable, "-m", "convert", *back], 1.05 * seconds, seed)
    if not out.exists():
        assert code == -signal.SIGKILL
        assert run(*back) == 0
    wanted = load_file(folder / "model.safetensors")
    given = load_file(out / "model.safetensors")
    assert set(given) == set(wanted)
    assert all(np.array_equal(given[name], wanted[name]) for name in wanted)
    assert (out / "config.json").is_file()
