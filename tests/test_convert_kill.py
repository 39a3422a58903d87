"""A killed conversion leaves nothing that looks complete, and can be run again."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
