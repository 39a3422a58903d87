"""The Makefile at its doors: what it refuses, and what it leaves alone."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkout(tmp_path):
    """A folder with what the Makefile reads, and nothing installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def make(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    # The outer make, which runs these tests, would pass its own settings on.
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "PYTHON", "VENV"}
    }
    return subprocess.run(
        ["make", *arguments],
        cwd=checkout,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )


def test_an_old_python_is_one_line(checkout):
    old = checkout / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    run = make(checkout, "demo", "PYTHON=./old-python")
    errors = [line for line in run.stderr.splitlines() if not line.startswith("make")]
    assert run.returncode == 2
    assert errors == [
        "error: Python 3.11 or newer is needed, not found as: ./old-python; say PYTHON=path"
    ]
    assert not (checkout / ".venv").exists()


def test_a_foreign_environment_is_refused_and_kept(checkout):
    kept = checkout / ".venv" / "kept"
    kept.parent.mkdir()
    kept.touch()
    run = make(checkout, "demo")
    assert run.returncode == 2
    assert "error: .venv was not made by this Makefile" in run.stderr
    assert make(checkout, "clean").returncode == 0
    assert kept.exists()


def test_clean_removes_only_what_it_made(checkout):
    kept = checkout / "build" / "kept"
    for folder in (".venv", "build/demo", "build/kept"):
        (checkout / folder).mkdir(parents=True)
    (checkout / ".venv" / ".made-by-make").touch()
    assert make(checkout, "clean").returncode == 0
    assert kept.exists()
    assert not (checkout / "build" / "demo").exists()
    assert not (checkout / ".venv").exists()


def test_help_is_the_default(checkout):
    assert make(checkout).stdout.startswith("make demo")
