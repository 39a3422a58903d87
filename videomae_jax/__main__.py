"""The `videomae` command: parse, call one function.

Usage:
    videomae classify CLIP... [--model DIR|FOLDER|ID] [--top-k 5] [--json] [--no-compile-cache]
    videomae evaluate --data DATA [--model DIR|FOLDER|ID] [--views 5x3] [--json]
    videomae pretrain --recipe NAME --data DATA --workdir DIR [--any.field VALUE]
    videomae finetune --recipe NAME --data DATA --workdir DIR [--init CKPT] [--val-data DATA]
    videomae probe --recipe linear|attentive|knn --data DATA --workdir DIR [--init CKPT]
    videomae recipes [NAME]
    videomae pack OUT --data DATA [--format raw|jpeg]
"""

import argparse
import sys

from videomae_jax.command import OneLineParser, fail, run_quietly
from videomae_jax.commands import add_all


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 if any input was bad."""
    options = parse(argv)

    def run() -> int:
        try:
            return options.run(options)
        except ValueError as error:
            return fail("videomae", error)

    return run_quietly(run)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace, whose `run` is the function to call with it."""
    parser = OneLineParser(prog="videomae", description="VideoMAE in JAX.")
    add_all(parser.add_subparsers(title="commands", required=True, metavar="COMMAND"))
    options, rest = parser.parse_known_args(argv)
    # Fields of a recipe are options, too: which there are is known when it is.
    if rest and not hasattr(options, "fields"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if hasattr(options, "fields"):
        options.fields = rest
    return options


if __name__ == "__main__":
    sys.exit(main())
