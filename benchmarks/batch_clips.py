"""Clips as people have them, in size and cost: 480x270, ten seconds of H.264."""

from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FRAMES, RATE = 480, 270, 300, 30


def write_clips(
    folder: Path,
    *,
    count: int,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    frames: int = FRAMES,
) -> list[Path]:
    """Textured pictures that move over each other, with some grain; a different seed each.

    `size` is width and height, at most 480 x 480 and at least 220 x 100.
    """
    import av

    folder.mkdir(parents=True)
    width, height = size
    paths = []
    for seed in range(count):
        generator = np.random.default_rng(seed)
        scene, thing = _texture(generator, 2 * WIDTH), _texture(generator, WIDTH)[:90, :120]
        path = folder / f"{seed:02d}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": "23", "preset": "veryfast"}
            for number in range(frames):
                left, top = number % width, number % (height - 90)
                frame = scene[:height, left : left + width].astype(np.int16)
                frame[top : top + 90, 100:220] = thing
                frame += generator.integers(-6, 7, (height, width, 1), np.int16)
                picture = frame.clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        paths.append(path)
    return paths


def _texture(generator: np.random.Generator, width: int) -> np.ndarray:
    """uint8 [width, width, 3], coarse and fine."""
    coarse = generator.integers(30, 200, (width // 48, width // 48, 3))
    fine = generator.integers(-25, 26, (width // 6, width // 6, 3))
    both = np.kron(coarse, np.ones((48, 48, 1))) + np.kron(fine, np.ones((6, 6, 1)))
    return both.clip(0, 255).astype(np.uint8)
