"""`videomae pack`: decode and resize the videos of a data set once, for many epochs."""

import argparse
from typing import Any

from videomae_jax.command import log_on_stderr
from videomae_jax.commands.training_options import need_packages


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "pack",
        help="decode and resize videos once, so that training for many epochs is quick",
        description=pack_videos.__doc__,
    )
    command.add_argument("out", metavar="OUT", help="a new folder, which --data takes then")
    command.add_argument(
        "--data",
        required=True,
        metavar="MANIFEST",
        help="a list, a CSV or Parquet file, or a folder per class",
    )
    command.add_argument("--split", metavar="NAME", help="only train, val or test (default: all)")
    command.add_argument(
        "--canvas",
        type=int,
        default=256,
        metavar="N",
        help="height and width of the frames, 8/7 of the model's (default: 256, for 224)",
    )
    command.add_argument(
        "--format",
        choices=("raw", "jpeg"),
        default="raw",
        help="raw is exact, 3 N^2 bytes a frame; jpeg is about a tenth of it (default: raw)",
    )
    command.add_argument(
        "--quality", type=int, default=90, metavar="Q", help="of jpeg, 1 to 95 (default: 90)"
    )
    command.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode (default: one a core)"
    )
    command.add_argument(
        "--on-bad-video",
        choices=("skip", "stop"),
        default="skip",
        help="leave a video that can't be read out, and say so; or stop (default: skip)",
    )
    command.set_defaults(run=pack_videos)


def pack_videos(options: argparse.Namespace) -> int:
    """Decode and resize all frames of the videos once, into a folder that training reads."""
    import logging

    from tqdm import tqdm

    from videomae_jax.training.examples import rows_of_split
    from videomae_jax.training.listing import read_rows
    from videomae_jax.training.pack import pack

    need_packages("array_record", "pyarrow")
    logger = logging.getLogger(__name__)
    with log_on_stderr("videomae"):
        rows = rows_of_split(read_rows(options.data), options.split)
        # Only a terminal is shown a bar.
        with tqdm(total=len(rows.paths), unit="video", disable=None, leave=False) as bar:
            result = pack(
                rows,
                options.out,
                canvas=options.canvas,
                encoding=options.format,
                quality=options.quality,
                workers=options.workers,
                on_bad_video=options.on_bad_video,
                report=logger.warning,
                progress=bar.update,
            )
    failed = f", {result.failed} that can't be read left out" if result.failed else ""
    print(
        f"{options.out}: {result.videos} videos, {result.frames:,} frames of "
        f"{options.canvas}x{options.canvas}, {result.bytes / 1e9:.3f} GB{failed}"
    )
    return 0
