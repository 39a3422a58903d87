"""Write labelled clips in which only motion tells the classes apart, as real video files.

    python -m examples.motions.generate OUT --count 600 --seed 1

OUT gets `SEED-00000.mp4`, ... (H.264, two seconds, 96x96 pixels) and `manifest.csv` with columns
`path` and `label`. The classes are those of `scene.MOTIONS`, as many clips of each as of any other,
give or take one. Clip i of a seed is drawn the same, however many are written; another seed gives
others. The same command again writes the clips that are missing.
"""

import argparse
import csv
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.motions.scene import MOTIONS, draw_clip

FRAMES = 32
RATE = 16
SIDE = 96


def generate(out: Path, *, count: int, seed: int, workers: int | None = None) -> Path:
    """Write the clips and, last of all, their manifest, whose path is returned.

    Raises:
        ValueError: for a count below 1 or a negative seed.
        ImportError: without PyAV.
    """
    if count < 1 or seed < 0:
        raise ValueError(f"count must be at least 1 and seed 0, got {count} and {seed}")
    import av  # noqa: F401 - so that its absence is one error, not one of each worker

    out.mkdir(parents=True, exist_ok=True)
    rows = [(file_name(number, seed), label_of(number, seed)) for number in range(count)]
    wanted = [number for number in range(count) if not (out / rows[number][0]).exists()]
    # Not forks of a process that may have threads, and a mode of rounding that a codec minds.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers or os.cpu_count() or 1, count), fresh) as pool:
        writing = (
            pool.map(
                write_clip,
                *zip(*((out, number, seed) for number in wanted), strict=True),
                chunksize=16,
            )
            if wanted
            else ()
        )
        for _ in tqdm(writing, total=len(wanted), unit="clip", disable=not sys.stderr.isatty()):
            pass
    manifest = out / "manifest.csv"
    partial = out / f".manifest.csv-{os.getpid()}"
    with partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    partial.replace(manifest)
    return manifest


def file_name(number: int, seed: int) -> str:
    """Of a clip: those of two seeds can share a folder."""
    return f"{seed}-{number:05d}.mp4"


def label_of(number: int, seed: int) -> str:
    """The motion of a clip: each dozen of clips has every one, in an order of its own."""
    block, place = divmod(number, len(MOTIONS))
    return MOTIONS[np.random.default_rng((seed, 0, block)).permutation(len(MOTIONS))[place]]


def write_clip(out: Path, number: int, seed: int) -> None:
    """Draw and encode one clip, whole or not at all."""
    import av

    generator = np.random.default_rng((seed, 1, number))
    frames = draw_clip(generator, label_of(number, seed), frames=FRAMES, side=SIDE)
    path = out / file_name(number, seed)
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=RATE)
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            stream.thread_count = 1
            stream.options = {"crf": "20", "preset": "veryfast"}
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.motions.generate", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the clips")
    parser.add_argument("--count", type=int, default=600, metavar="N", help="clips (600)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which clips (0)")
    options = parser.parse_args(argv)
    try:
        manifest = generate(options.out, count=options.count, seed=options.seed)
    except (OSError, ValueError) as error:
        parser.exit(2, f"generate: error: {error}\n")
    except ImportError:
        parser.exit(2, "generate: error: PyAV is needed: pip install 'videomae-jax[video]'\n")
    print(f"wrote {manifest}: {options.count} clips of {len(MOTIONS)} motions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
