"""Starting is cheap: the package and its command import what they use, when they use it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "av", "cv2", "orbax", "optax", "grain", "gradio"} | {
    # The door that `load` opens for what isn't converted, and what is behind it.
    "convert",
    "huggingface_hub",
}


def modules_after(*arguments: str) -> set[str]:
    """Top-level modules that a fresh Python has loaded by the end of a successful run."""
    run = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    # "import time:  self [us] | cumulative | imported package", names indented by depth.
    lines = run.stderr.splitlines()
    rows = [line.split("|") for line in lines if line.startswith("import time:")]
    others = [line for line in lines if not line.startswith("import time:")]
    assert run.returncode == 0, "\n".join(others)
    return {row[2].strip().split(".")[0] for row in rows}


@pytest.mark.parametrize(
    "code",
    [
        "import videomae_jax",
        "import videomae_jax as vm; [getattr(vm, name) for name in vm.__all__]",
    ],
    ids=["import", "every public name"],
)
def test_import_pulls_in_nothing_heavy(code):
    loaded = modules_after("-c", code)
    assert "videomae_jax" in loaded
    assert not loaded & HEAVY


def test_a_heavy_import_would_be_seen():
    assert "av" in modules_after("-c", "import av.error")


def test_help_needs_no_jax():
    loaded = modules_after("-m", "videomae_jax", "--help")
    assert "videomae_jax" in loaded
    assert not loaded & (HEAVY | {"jax", "flax"})
