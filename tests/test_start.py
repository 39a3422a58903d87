"""Starting is cheap: the package and its command import what they use, when they use it."""

import subprocess
import sys
from pathlib import Path

import pytest

from examples.quickstart.clip import make_clip
from tests.test_inference import write

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


def test_what_a_directory_holds_needs_no_jax():
    loaded = modules_after("-c", "from videomae_jax import checkpoint, compile_cache, video")
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"jax", "flax"})


def test_classifying_imports_no_more_than_it_uses(tmp_path):
    write(tmp_path / "model")
    make_clip(tmp_path / "clip.mp4")
    arguments = ["classify", str(tmp_path / "clip.mp4"), "--model", str(tmp_path / "model")]
    code = f"import sys; from videomae_jax.__main__ import main; main({arguments})"
    code += "; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    loaded = set(run.stdout.splitlines()[-1].split())
    assert {"jax", "flax.linen", "av", "videomae_jax.inference"} <= loaded
    # Orbax and what it reads with; the kernels of other devices.
    others = {"orbax", "tensorstore", "jax.experimental.pallas", "convert"}
    assert not loaded & (others | (HEAVY - {"av"}))
