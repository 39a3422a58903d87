"""Translate a PyTorch VideoMAE checkpoint into a directory for JAX, or back.

    python -m convert SOURCE            print what was found, write nothing
    python -m convert SOURCE OUT        convert
    python -m convert SOURCE OUT --verify
    python -m convert ORG/NAME OUT      download from the Hugging Face hub and convert
    python -m convert DIR OUT --to huggingface
    python -m convert DIR OUT.pth --to original

SOURCE is a Hugging Face folder, a `.pth` file of VideoMAE, VideoMAE V2 or mmaction2, or a folder of
VideoMAE V2 as on the hub; DIR is a directory that this command wrote.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from videomae_jax.command import OneLineParser, fail, run_quietly

# Config fields by the option that sets them.
OVERRIDES = {
    "num_attention_heads": "num_heads",
    "decoder_num_attention_heads": "decoder_num_heads",
    "image_size": "image_size",
    "num_frames": "num_frames",
}


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0, 1 if verification fails, 2 if the source or request is bad."""
    options = parse(argv)
    return run_quietly(lambda: exit_code(options))


def exit_code(options: argparse.Namespace) -> int:
    """Run the job; what can go wrong becomes lines on stderr and a number."""
    from convert.errors import ConversionError, VerificationError
    from videomae_jax.checkpoint import CheckpointError

    try:
        if options.to is None:
            run(options)
        else:
            run_back(options)
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
    parser.add_argument("source", metavar="SOURCE", help="a folder, a weight file, or a hub id")
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
    parser.add_argument("--revision", metavar="R", help="of a hub id: a branch, tag or commit")
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
        "--weights", choices=("model", "ema"), help="of a training file (default: model)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the parameters (default: float32; with --to: the directory's)",
    )
    parser.add_argument(
        "--to",
        choices=("huggingface", "original"),
        help="back: from a directory that this command wrote to a PyTorch checkpoint",
    )
    options = parser.parse_args(argv)
    if options.to is not None:
        refuse_with_to(parser, options)
    return options


def refuse_with_to(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """What has no meaning on the way back is an error, not passed over."""
    if options.out is None:
        parser.error(f"--to {options.to} needs OUT")
    for name in ("labels", "label_map", "weights", "revision", *OVERRIDES.values()):
        if getattr(options, name) is not None:
            option = name.replace("_", "-")
            parser.error(f"--{option} is of no use with --to: convert anew with it first")


def run(options: argparse.Namespace) -> None:
    """Convert as asked and print the report."""
    from convert import hub, job, report_text, verify
    from convert.errors import ConversionError
    from videomae_jax.writing import refuse_existing

    if options.out is not None:
        refuse_existing(options.out)
    if options.verify:
        verify.import_reference()
    snapshot = None
    if hub.is_hub_id(options.source):
        snapshot = hub.fetch(options.source, revision=options.revision)
    elif options.revision is not None:
        raise ConversionError(f"{options.source} is a path: --revision is for ids on the hub")
    request = job.Request(
        overrides=overrides(options),
        labels=options.labels,
        label_map=options.label_map,
        weights=options.weights or "model",
        dtype=options.dtype or "float32",
        snapshot=snapshot,
    )
    source = Path(options.source) if snapshot is None else snapshot.folder
    conversion = job.convert(source, request, progress=progress_bar)
    print(report_text.as_text(conversion.description.conversion), flush=True)
    source, network, model = conversion.source, conversion.network, conversion.model

    def prove(params: Any) -> dict[str, Any]:
        note("comparing with transformers")
        figures = verify.verify(source, network, model, params, dtype=request.dtype)
        print(verify.as_text(figures), flush=True)
        return {"verification": figures}

    if options.out is not None:
        note(f"writing {options.out}")
        job.write(conversion, options.out, prove=prove if options.verify else None)
        print(f"written to {options.out}")
    elif options.verify:
        prove(conversion.params)


def run_back(options: argparse.Namespace) -> None:
    """Write a PyTorch checkpoint as asked and print what is in it."""
    from convert import back, verify
    from videomae_jax.writing import refuse_existing

    refuse_existing(options.out)
    if options.verify:
        verify.import_reference()
    export = back.read(options.source, options.to, dtype=options.dtype)
    print(back.as_text(export), flush=True)

    def prove(written: Path) -> dict[str, Any]:
        note("comparing with transformers")
        again = back.reopen(export, written)
        figures = verify.verify(
            again.source, again.network, again.model, back.rounded(export), dtype=export.dtype
        )
        print(verify.as_text(figures), flush=True)
        return {"verification": figures}

    back.write(export, options.out, progress=progress_bar, prove=prove if options.verify else None)
    print(f"written to {options.out}")


def progress_bar(items: list[Any]) -> Iterable[Any]:
    """The tensors one by one, with a bar on stderr if that is a terminal."""
    from tqdm import tqdm

    return tqdm(items, unit="tensors", leave=False, disable=None)


def note(text: str) -> None:
    """Say what takes its time, to somebody who watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{text}\n")


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """The config fields that the user set."""
    fields = {field: getattr(options, option) for field, option in OVERRIDES.items()}
    return {name: value for name, value in fields.items() if value is not None}


def image_size(text: str) -> tuple[int, int]:
    """'224' or '224x320', height first."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"must be a number or HEIGHTxWIDTH, got {text!r}")
    return int(sides[0]), int(sides[-1])


if __name__ == "__main__":
    sys.exit(main())
