"""Put a trained model into the box: a converted directory -> the folder that the package ships.

    python -m examples.motions.box DIR [OUT]

A Hugging Face folder in float16, half the bytes; OUT is a new folder, by default the one in the
package. No path of this machine is in it.
"""

import argparse
import sys
from pathlib import Path

from videomae_jax import boxed

LARGEST = 4 * 2**20
"""Bytes that the package may grow by."""


def put_in_box(directory: Path, out: Path) -> int:
    """Write the folder; returns its bytes.

    Raises:
        ValueError: if `out` exists, or for a directory that can't be read, or that gives more than
            `LARGEST` bytes, of which nothing stays.
    """
    from convert import back

    export = back.read(directory, "huggingface", dtype="float16")
    if export.description.architecture != "VideoClassifier":
        raise ValueError(f"{directory}: is a {export.description.architecture}; box a classifier")
    size = sum(make().size * 2 for _, make in export.pieces)
    if size > LARGEST:
        raise ValueError(f"{directory}: is {size:,} bytes in float16, more than {LARGEST:,}")
    back.write(export, out)
    # The report, with the path that it was made from.
    (out / "conversion.json").unlink()
    return sum(path.stat().st_size for path in out.iterdir())


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.motions.box", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="a converted directory")
    parser.add_argument(
        "out", type=Path, metavar="OUT", nargs="?", default=boxed.FOLDER, help="a new folder"
    )
    options = parser.parse_args(argv)
    try:
        size = put_in_box(options.directory, options.out)
    except ValueError as error:
        parser.exit(2, f"box: error: {error}\n")
    print(f"wrote {options.out}: {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
