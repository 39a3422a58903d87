"""Tiny videos and recipes, and a run on them, here or in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import unittest.mock
from pathlib import Path

import av
import jax
import numpy as np

from videomae_jax.__main__ import main as command
from videomae_jax.config import VideoMAEConfig
from videomae_jax.inference import load
from videomae_jax.training import recipes
from videomae_jax.training.checkpoints import named_leaves
from videomae_jax.training.settings import Augment, Input, Masking, Optimizer, Recipe

ROOT = Path(__file__).parents[1]

MODEL = VideoMAEConfig(
    image_size=(16, 16),
    patch_size=(8, 8),
    num_frames=4,
    tubelet_size=2,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    decoder_hidden_size=12,
    decoder_num_attention_heads=3,
    decoder_num_hidden_layers=1,
    decoder_intermediate_size=20,
    num_labels=0,
)
INPUT = Input(batch_size=4, sampling="kinetics_train", rate=1)
OPTIMIZER = Optimizer(base_lr=0.02, epochs=4.0, warmup_epochs=1.0, weight_decay=0.05)

PRETRAIN = Recipe(
    task="pretrain",
    model=MODEL,
    input=INPUT,
    optimizer=OPTIMIZER,
    augment=Augment(crop="multi_scale", flip=0.5),
    masking=Masking(ratio=0.5),
)
FINETUNE = Recipe(
    task="finetune",
    model=MODEL,
    input=INPUT,
    optimizer=dataclasses.replace(OPTIMIZER, layer_decay=0.75, ema=0.9, clip_norm=5.0),
    augment=Augment(crop="resized", flip=0.5, erase=0.25, mixup=0.8, cutmix=1.0, smoothing=0.1),
    drop_path=0.1,
    head_dropout=0.1,
)
# Programs are compiled once for all runs of a test, whatever is edited meanwhile.
COMPILED = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(prefix="compiled-"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
RECIPES = {"test-pretrain": PRETRAIN, "test-finetune": FINETUNE}
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


def write_videos(folder: Path, count: int) -> Path:
    """Videos of one colour each, the class; FOLDER/list.csv names them, every fourth is "val"."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    lines = ["path,label,split"]
    for number in range(count):
        name = list(COLOURS)[number % 3]
        frames = np.array(COLOURS[name]) + generator.integers(-50, 50, (8, 24, 32, 3))
        write_frames(folder / f"{number}.mp4", frames.astype(np.uint8))
        lines.append(f"{number}.mp4,{name},{'val' if number % 4 == 3 else 'train'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def write_frames(path: Path, frames: np.ndarray) -> None:
    """A video of frames uint8 [T, H, W, 3]."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())


def words(task: str, data: object, workdir: object, *options: object) -> list[str]:
    """The arguments of `videomae`, a line of metrics for each step."""
    chosen = ["--recipe", f"test-{task}", "--data", data, "--workdir", workdir, "--log-every", 1]
    return [str(word) for word in (task, *chosen, *options)]


def train(task: str, data: object, workdir: object, *options: object) -> int:
    """A run in this process, quickly compiled; its exit code."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        return main(words(task, data, workdir, *options))
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def start(
    task: str,
    data: object,
    workdir: object,
    *options: object,
    environment: dict[str, str] | None = None,
) -> subprocess.Popen:
    """A run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tiny_training", *words(task, data, workdir, *options)],
        cwd=ROOT,
        env=os.environ | COMPILED | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, what it wrote to stderr)."""
    _, errors = process.communicate(timeout=900)
    return process.returncode, errors


def lines(workdir: Path) -> list[dict]:
    """The metrics of a run."""
    text = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def weights(directory: Path) -> dict[str, np.ndarray]:
    """The parameters of a converted directory, by name."""
    return {name: np.asarray(leaf) for name, leaf in named_leaves(load(directory).params).items()}


def assert_same_bits(one: Path, other: Path) -> None:
    """The same parameters, bit for bit."""
    have, want = weights(one), weights(other)
    assert have.keys() == want.keys()
    for name in have:
        np.testing.assert_array_equal(have[name], want[name], err_msg=name)


def main(argv: list[str]) -> int:
    """`videomae`, knowing the tests' recipes."""
    with unittest.mock.patch.dict(recipes.RECIPES, RECIPES):
        return command(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
