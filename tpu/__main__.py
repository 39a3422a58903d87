"""Work with TPUs: parse, call one function, print.

Usage:
    python -m tpu aot --topology v5e:2x2 --model small --batch 32 [--num-heads 16] [--json]
"""

import argparse
import dataclasses
import json
import sys

from videomae_jax.command import OneLineParser, fail, run_quietly


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, or 2 if it can't be done."""
    options = parse(argv)

    def run() -> int:
        try:
            return options.run(options)
        except ValueError as error:
            return fail("tpu", error)

    return run_quietly(run)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace, whose `run` is the function to call with it."""
    from videomae_jax.config import VARIANTS

    parser = OneLineParser(prog="python -m tpu", program="tpu", description="VideoMAE on TPUs.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "aot",
        help="compile for a TPU on a machine that has none, and account for it",
        description=compile_ahead.__doc__,
    )
    command.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SIDES",
        help="v5e:1x1, v5e:16x16, v6e:2x2, v4:2x2x1, v5p:4x4x4, ...",
    )
    command.add_argument("--model", choices=list(VARIANTS), default="small", help="its size")
    command.add_argument(
        "--num-heads", type=int, metavar="N", help="attention heads, of the same width in all"
    )
    command.add_argument("--num-labels", type=int, default=400, metavar="N", help="classes")
    command.add_argument(
        "--batch", type=int, default=32, metavar="B", help="clips a chip (default: 32)"
    )
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of parameters and arithmetic (default: bfloat16)",
    )
    command.add_argument(
        "--clips",
        choices=("uint8", "bfloat16", "float32"),
        help="dtype of the clips that come in; uint8 is normalised on the chip (default: --dtype)",
    )
    command.add_argument(
        "--backend", metavar="NAME", help="attention: pallas (the default on TPUs) or xla"
    )
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    command.set_defaults(run=compile_ahead)
    return parser.parse_args(argv)


def compile_ahead(options: argparse.Namespace) -> int:
    """Print what the classifier's forward pass needs on a TPU. Every figure is modelled."""
    from tpu.aot import Request, account, prepare
    from tpu.report_text import as_text
    from videomae_jax.config import VARIANTS
    from videomae_jax.flops import flops_per_clip

    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {options.batch}")
    prepare()
    config = dataclasses.replace(VARIANTS[options.model], num_labels=options.num_labels)
    if options.num_heads is not None:
        config = dataclasses.replace(config, num_attention_heads=options.num_heads)
    request = Request(
        topology=options.topology,
        config=config,
        batch=options.batch,
        dtype=options.dtype,
        clips=options.clips,
        backend=options.backend,
    )
    found = account(request)
    if options.json:
        asked = {"model": options.model, **dataclasses.asdict(request), "config": config.to_dict()}
        print(json.dumps(asked | found.to_dict()))
    else:
        heads, clips = config.num_attention_heads, options.clips or options.dtype
        what = (
            f"{options.model}, {heads} heads, {options.dtype}, {options.batch} {clips} clips a chip"
        )
        print(as_text(found, what=what, counted_flops=flops_per_clip(config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
