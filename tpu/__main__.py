"""Work with TPUs and other accelerators: parse, call one function.

Usage:
    python -m tpu run MANIFEST OUT --model DIR [--task classify|embed] [--views 5x3]
    python -m tpu ray MANIFEST OUT --model DIR
    python -m tpu plan --videos 1e9 --chip v5e --model small
    python -m tpu aot --topology v5e:2x2 --model small --batch 32 [--num-heads 16] [--json]
"""

import argparse
import sys

from tpu.commands.aot import add_aot
from tpu.commands.plan import add_plan
from tpu.commands.ray import add_ray
from tpu.commands.run import add_run
from tpu.job import BrokenOffError
from videomae_jax.command import OneLineParser, fail, run_quietly


class TpuParser(OneLineParser):
    """A parser whose errors begin with "tpu", those of the commands as well."""

    def __init__(self, **settings):
        super().__init__(program="tpu", **settings)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 if it can't be done, 1 if it broke off."""
    options = parse(argv)

    def run() -> int:
        try:
            return options.run(options)
        except ValueError as error:
            return fail("tpu", error)
        except BrokenOffError as error:
            fail("tpu", error)
            return 1

    return run_quietly(run)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace, whose `run` is the function to call with it."""
    parser = TpuParser(prog="python -m tpu", description="VideoMAE on TPUs, and many videos.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_run(commands)
    add_ray(commands)
    add_plan(commands)
    add_aot(commands)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
