"""Translate a PyTorch VideoMAE checkpoint into a directory for JAX.

    python -m convert SOURCE            print what was found, write nothing
    python -m convert SOURCE OUT        convert
    python -m convert SOURCE OUT --verify

SOURCE is a Hugging Face folder, a `.pth` file of VideoMAE, VideoMAE V2 or mmaction2, or a folder of
VideoMAE V2 as on the hub.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videomae_jax.command import OneLineParser, fail, run_quietly


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, 1 if verification fails, 2 if the source or request is bad."""
    options = parse(argv)
    return run_quietly(lambda: exit_code(options))


def exit_code(options: argparse.Namespace) -> int:
    """Run the job; what can go wrong becomes lines on stderr and a number."""
    from convert.errors import ConversionError, VerificationError
    from videomae_jax.checkpoint import CheckpointError

    try:
        run(options)
    except VerificationError as error:
        print(error)
        fail("convert", "the converted model is not the reference")
        return 1
    except ConversionError as error:
        return fail("convert", *error.problems)
    except BrokenPipeError:
        raise
    # A full disk, say: its text names the file.
    except (CheckpointError, OSError) as error:
        return fail("convert", error)
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line as a namespace."""
    parser = OneLineParser(
        program="convert",
        prog="python -m convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a folder or a weight file")
    parser.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="a new directory; none: only report"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with transformers' model on a random clip; exit code 1 if they differ",
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="class names, one a line, for .pth files"
    )
    parser.add_argument("--num-heads", type=int, metavar="N", help="attention heads")
    parser.add_argument("--decoder-num-heads", type=int, metavar="N", help="of the decoder")
    parser.add_argument(
        "--image-size", type=image_size, metavar="S|HxW", help="pixels (original files: 224)"
    )
    parser.add_argument("--num-frames", type=int, metavar="T", help="(original files: 16)")
    parser.add_argument(
        "--label-map",
        type=Path,
        metavar="FILE",
        help="rows of the head to take, a JSON list: Kinetics-400 out of 710, say",
    )
    parser.add_argument(
        "--weights", choices=("model", "ema"), default="model", help="of a training file"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="of the parameters",
    )
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Convert as asked and print the report."""
    from convert import job, report_text, verify
    from videomae_jax import checkpoint

    if options.out is not None:
        checkpoint.refuse_existing(options.out)
    if options.verify:
        verify.import_reference()
    request = job.Request(
        overrides=overrides(options),
        labels=options.labels,
        label_map=options.label_map,
        weights=options.weights,
        dtype=options.dtype,
    )
    conversion = job.convert(options.source, request, progress=progress_bar)
    print(report_text.as_text(conversion.description.conversion), flush=True)
    source, network, model = conversion.source, conversion.network, conversion.model

    def prove(params: Any) -> dict[str, Any]:
        sys.stderr.write("comparing with transformers\n" if sys.stderr.isatty() else "")
        figures = verify.verify(source, network, model, params, dtype=options.dtype)
        print(verify.as_text(figures), flush=True)
        return {"verification": figures}

    if options.out is not None:
        job.write(conversion, options.out, prove=prove if options.verify else None)
        print(f"written to {options.out}")
    elif options.verify:
        prove(conversion.params)


def progress_bar(assignments: list[Any]) -> Iterator[Any]:
    """The tensors one by one, with a bar of their bytes on stderr if that is a terminal."""
    from tqdm import tqdm

    sizes = [math.prod(assignment.tensor.shape) for assignment in assignments]
    unit = "parameters"
    with tqdm(total=sum(sizes), unit=unit, unit_scale=True, leave=False, disable=None) as bar:
        for assignment, size in zip(assignments, sizes, strict=True):
            yield assignment
            bar.update(size)


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The config fields that the user set."""
    fields = {
        "num_attention_heads": options.num_heads,
        "decoder_num_attention_heads": options.decoder_num_heads,
        "image_size": options.image_size,
        "num_frames": options.num_frames,
    }
    return {name: value for name, value in fields.items() if value is not None}


def image_size(text: str) -> tuple[int, int]:
    """'224' or '224x320', height first."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"must be a number or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])


if __name__ == "__main__":
    sys.exit(main())
