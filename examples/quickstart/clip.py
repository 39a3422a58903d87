"""Write a short video of a textured square that moves right.

    python -m examples.quickstart.clip OUT.mp4

Three seconds of H.264, 320x240 at 25 frames a second, the same every time.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

RATE = 25
NUM_FRAMES = 75
HEIGHT, WIDTH = 240, 320
SIDE = 80


def make_clip(path: Path, *, seed: int = 0) -> None:
    """Write the video, whole or not at all.

    Raises:
        FileExistsError: when `path` exists, which is left as it is.
    """
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists: name a new file, or remove it first")
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.options = {"crf": "18"}
            for frame in draw_frames(seed):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def draw_frames(seed: int) -> Iterator[np.ndarray]:
    """The frames, uint8 [H, W, 3]: the square crosses from edge to edge at an even speed."""
    generator = np.random.default_rng(seed)
    background = _texture(generator, height=HEIGHT, width=WIDTH, cell=16, darkest=40, brightest=120)
    square = _texture(generator, height=SIDE, width=SIDE, cell=10, darkest=120, brightest=255)
    top = (HEIGHT - SIDE) // 2
    for left in np.linspace(0, WIDTH - SIDE, NUM_FRAMES).round().astype(int):
        frame = background.copy()
        frame[top : top + SIDE, left : left + SIDE] = square
        yield frame


def _texture(
    generator: np.random.Generator,
    *,
    height: int,
    width: int,
    cell: int,
    darkest: int,
    brightest: int,
) -> np.ndarray:
    cells = generator.integers(
        darkest, brightest, size=(height // cell, width // cell, 3), dtype=np.uint8
    )
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.quickstart.clip", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT.mp4", help="file to write; must not exist")
    out = parser.parse_args(argv).out
    try:
        make_clip(out)
    except OSError as error:
        parser.exit(2, f"clip: error: {error}\n")
    except ImportError:
        parser.exit(2, "clip: error: PyAV is needed: pip install 'videomae-jax[video]'\n")
    print(f"wrote {out}: {NUM_FRAMES} frames, {WIDTH}x{HEIGHT}, a square moving right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
