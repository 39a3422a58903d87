"""Small films that differ: blocks of random colours that wander, each film by its seed."""

from pathlib import Path

import av
import numpy as np


def frames(
    seed: int, count: int, *, size: tuple[int, int] = (32, 48), still: bool = False
) -> np.ndarray:
    """uint8 [count, H, W, 3]; nothing moves where `still`."""
    generator = np.random.default_rng(seed)
    height, width = size
    blocks = generator.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    step = generator.integers(-3, 4, 2) * (not still)
    return np.stack([np.roll(picture, tuple(step * number), (0, 1)) for number in range(count)])


def write_film(
    path: Path,
    seed: int,
    *,
    count: int = 12,
    size: tuple[int, int] = (32, 48),
    still: bool = False,
) -> Path:
    """A video file of them."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.options = {"crf": "10"}
        for frame in frames(seed, count, size=size, still=still):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode())
    return path
