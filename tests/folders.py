"""Tiny Hugging Face folders for the converter's tests, made without torch, and how it is run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.checkpoints import (
    draw,
    hugging_face_config,
    hugging_face_shapes,
    mmaction2_shapes,
    original_shapes,
    v2_hub_shapes,
)
from convert.__main__ import main
from tests.configs import TINY
from videomae_jax.config import VideoMAEConfig
from videomae_jax.tokens import sinusoid_table

ARCHITECTURES = ("VideoClassifier", "VideoPretrainer", "VideoEncoder")


def random_tensors(
    architecture: str = "VideoClassifier", config: VideoMAEConfig = TINY, *, seed: int = 0
) -> dict[str, np.ndarray]:
    """The tensors of a Hugging Face file by name; no bias is 0, no norm scale 1."""
    return dict(draw(hugging_face_shapes(config, architecture), seed=seed))


def write_folder(
    path: Path,
    tensors: dict[str, np.ndarray] | None = None,
    *,
    architecture: str = "VideoClassifier",
    config: VideoMAEConfig = TINY,
    **entries: Any,
) -> Path:
    """Make a Hugging Face folder; `entries` are set in its config.json, or left out where None."""
    path.mkdir(parents=True)
    if tensors is None:
        tensors = random_tensors(architecture, config)
    # safetensors writes the memory of a non-contiguous array in the wrong order (its issue 825).
    contiguous = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(contiguous, path / "model.safetensors")
    fields = hugging_face_config(config, architecture) | entries
    write_json(path / "config.json", {k: v for k, v in fields.items() if v is not None})
    return path


def write_original(
    path: Path, config: VideoMAEConfig = TINY, architecture: str = "VideoClassifier"
) -> Path:
    """An original layout in a safetensors file, which needs no torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(draw(original_shapes(config, architecture))), path)
    return path


def write_mmaction2(path: Path, config: VideoMAEConfig = TINY, **more: np.ndarray) -> Path:
    """A classifier as mmaction2 saves it, its table of positions among the tensors, and `more`."""
    table = np.array(sinusoid_table(config.num_tokens, config.hidden_size), np.float32)
    tensors = dict(draw(mmaction2_shapes(config, "VideoClassifier")))
    save_file(tensors | {"backbone.pos_embed": table[None]} | more, path)
    return path


def write_v2_hub(folder: Path, config: VideoMAEConfig = TINY, **model_config: Any) -> Path:
    """An encoder of VideoMAE V2 as on the hub; `model_config` is what its config.json says."""
    folder.mkdir(parents=True)
    save_file(dict(draw(v2_hub_shapes(config, "VideoEncoder"))), folder / "model.safetensors")
    write_json(folder / "config.json", {"model_config": model_config})
    return folder


def write_names(path: Path, count: int) -> Path:
    """A file of class names, one a line."""
    path.write_text("".join(f"class {index}\n" for index in range(count)), encoding="utf-8")
    return path


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def run(*arguments: object) -> int:
    """The exit code of the command."""
    return main([str(argument) for argument in arguments])


def refusal(capsys, watched: Path, *arguments: object) -> list[str]:
    """What the command says when it refuses: all on stderr, in lines, and nothing is written."""
    before = listing(watched)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert listing(watched) == before
    prefix = "convert: error: "
    lines = printed.err.splitlines()
    assert all(line.startswith(prefix) for line in lines), printed.err
    assert len(set(lines)) == len(lines)
    return [line.removeprefix(prefix) for line in lines]


def assert_memory_within_bound(folder: Path, format: str) -> None:
    """Peak memory of converting a full-size small model: 2.2 times the weights plus 400 MB."""
    figures = folder / "figures.json"
    options = ["small", "--formats", format, "--json", str(figures)]
    subprocess.run(
        [sys.executable, "-m", "benchmarks.convert_memory", *options],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"TMPDIR": str(folder)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    (row,) = json.loads(figures.read_text(encoding="utf-8"))["conversions"]
    # More than the weights, too: less would mean that nothing was measured.
    assert row["weight_bytes"] < row["peak_bytes"] < 2.2 * row["weight_bytes"] + 400e6
    assert list(folder.iterdir()) == [figures]


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Everything below a folder, with sizes and times."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}
