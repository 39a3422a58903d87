"""A tiny model, generated clips, and the batch job on them, here or in a process of its own."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pandas.testing import assert_frame_equal

from convert.__main__ import main as convert
from tests.clips import write_clip, write_sound
from tests.folders import write_folder, write_names
from tpu.__main__ import main

ROOT = Path(__file__).parents[1]
REAL = Path(__file__).parents[2] / "shared" / "clips"
TIMES = ["decode_s"]
"""Columns that no two runs agree on."""


def write_model(folder: Path) -> Path:
    """A converted classifier of tests.configs.TINY."""
    source = write_folder(folder / "source")
    labels = write_names(folder / "names.txt", 7)
    out = folder / "tiny"
    assert convert([str(source), str(out), "--labels", str(labels)]) == 0
    return out


def write_clips(folder: Path, count: int, *, first: int = 8) -> list[Path]:
    """Clips of 8, 9, 10, ... frames, up to 40 and again."""
    folder.mkdir(parents=True, exist_ok=True)
    originals: dict[int, Path] = {}
    paths = []
    for number in range(count):
        frames = first + number % 32
        path = folder / f"clip-{number:04d}.mp4"
        if frames in originals:
            os.link(originals[frames], path)
        else:
            originals[frames] = write_clip(path, frames)
        paths.append(path)
    return paths


def corrupt(path: Path, kind: int, draw: random.Random) -> None:
    """Replace a clip by one that can't be read, in one of eight ways."""
    content = bytearray(path.read_bytes())
    path.unlink()
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.write_bytes(content[: len(content) // 2])
    elif kind == 2:
        path.write_bytes(draw.randbytes(len(content)))
    elif kind == 3:
        path.write_text("#EXTM3U\n/etc/passwd\n")
    elif kind == 4:
        path.mkdir()
    elif kind == 5:
        write_sound(path.with_suffix(".m4a"), "aac").rename(path)
    elif kind == 6:
        # All of the film's pictures, and none of what they need to be shown.
        start = content.index(b"mdat") + 4
        content[start : start + 2000] = bytes(min(2000, len(content) - start))
        path.write_bytes(content)
    else:
        # A path that leads nowhere.
        path.symlink_to(path.with_name("gone.mp4"))


KINDS = 8


def job(manifest: object, out: object, *options: object) -> list[str]:
    """The arguments of `python -m tpu`."""
    words = ["run", manifest, out, "--dtype", "float32", "--no-compile-cache", *options]
    return [str(word) for word in words]


def run(manifest: object, out: object, *options: object) -> int:
    """The job in this process; its exit code."""
    return main(job(manifest, out, *options))


def start(
    manifest: object, out: object, *options: object, environment: dict[str, str] | None = None
) -> subprocess.Popen:
    """The job in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "tpu", *job(manifest, out, *options)],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """(exit code, what it wrote to stderr)."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def last_line(errors: str) -> dict:
    """The figures at the end."""
    lines = [line for line in errors.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


def rows(out: Path) -> pd.DataFrame:
    """All rows of OUT in the manifest's order, each once."""
    frame = pd.read_parquet(out).sort_values("row").reset_index(drop=True)
    assert frame["row"].is_unique
    return frame


def assert_same(one: pd.DataFrame, other: pd.DataFrame, *, but: Sequence[str] = ()) -> None:
    """The same rows, row for row; probabilities and embeddings to float32."""
    drop = [*TIMES, *but]
    answers = [name for name in ("probabilities", "embedding") if name in one]
    for name in answers:
        have = one[name].dropna().explode().astype(float)
        want = other[name].dropna().explode().astype(float)
        assert len(have) == len(want)
        assert abs(have.to_numpy() - want.to_numpy()).max() < 1e-6
    assert_frame_equal(one.drop(columns=drop + answers), other.drop(columns=drop + answers))
