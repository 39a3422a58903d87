"""What every command that uses a model asks alike: which one, and how it computes."""

import argparse
import contextlib
import os
from typing import TYPE_CHECKING, Any

from videomae_jax.boxed import OPTION_HELP, model_or_boxed

if TYPE_CHECKING:
    from videomae_jax.inference import Checkpoint


def add_model_options(command: argparse.ArgumentParser) -> None:
    """Add --model and what goes with it."""
    command.add_argument("--model", metavar="DIR|FOLDER|ID", help=OPTION_HELP)
    command.add_argument("--revision", metavar="R", help="of an id: a branch, tag or commit")
    command.add_argument(
        "--num-heads", type=int, metavar="N", help="attention heads, against what the config says"
    )
    command.add_argument(
        "--dtype",
        metavar="float32|bfloat16",
        default="float32",
        help="what to compute in; bfloat16 is faster, and near (default: float32)",
    )
    command.add_argument(
        "--no-compile-cache",
        dest="compile_cache",
        action="store_false",
        help="compile anew, and keep nothing compiled in the user's cache folder",
    )


def choose_model(options: argparse.Namespace) -> None:
    """Put the boxed model where none is said, and say so.

    Raises:
        CheckpointError: if there is none.
    """
    options.model = os.fspath(model_or_boxed(options.model))


def load_model(options: argparse.Namespace) -> "Checkpoint":
    """The checkpoint that the options say.

    Raises:
        ValueError: as `videomae_jax.load`.
    """
    import videomae_jax as vm

    return vm.load(
        options.model,
        revision=options.revision,
        num_heads=options.num_heads,
        dtype=options.dtype,
    )


def compile_cache(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """Within it, compiled programs are kept from one run to the next, unless told not to."""
    from videomae_jax.compile_cache import use_compile_cache

    return use_compile_cache() if options.compile_cache else contextlib.nullcontext()
