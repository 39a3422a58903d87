"""What every command that uses a model asks alike: which one, and how it computes."""

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from videomae_jax.boxed import OPTION_HELP, model_or_boxed
from videomae_jax.command import fail

if TYPE_CHECKING:
    from videomae_jax.inference import Checkpoint
    from videomae_jax.views import Views


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
    add_compile_cache_option(command)


def add_compile_cache_option(command: argparse.ArgumentParser) -> None:
    """Add what `compile_cache` goes by."""
    command.add_argument(
        "--no-compile-cache",
        dest="compile_cache",
        action="store_false",
        help="compile anew, and keep nothing compiled in the user's cache folder",
    )


def add_views_options(command: argparse.ArgumentParser) -> None:
    """Add what decides how many videos become batches of clips."""
    from videomae_jax.sampling import SAMPLING

    command.add_argument(
        "--views",
        default="1x1",
        metavar="SEGMENTSxCROPS",
        help="clips of each video, in time and along its longer side, merged (default: 1x1)",
    )
    command.add_argument(
        "--sampling",
        choices=list(SAMPLING),
        help="which frames (default: uniform; kinetics for several segments)",
    )
    command.add_argument(
        "--sampling-rate",
        type=whole,
        default=4,
        metavar="R",
        help="distance between frames, for the rules that have one (default: 4)",
    )
    command.add_argument(
        "--batch",
        type=whole,
        metavar="N",
        help="clips a device at a time (default: 32; 4 on a CPU)",
    )
    command.add_argument(
        "--workers", type=whole, metavar="N", help="videos decoded at a time (default: one a core)"
    )


def whole(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def views_of(options: argparse.Namespace) -> "Views":
    """The views that the options say.

    Raises:
        ValueError: as `Views.parse`.
    """
    from videomae_jax.views import Views

    return Views.parse(options.views, sampling=options.sampling, rate=options.sampling_rate)


def progress_bar(total: int, *, unit: str = "videos") -> Callable[[Iterable[Any]], Iterator[Any]]:
    """A bar on stderr, if that is a terminal, for so many things that go through it."""
    from tqdm import tqdm

    return lambda items: iter(tqdm(items, total=total, unit=unit, leave=False, disable=None))


def say_bad(path: str, error: ValueError) -> None:
    """A line for a video that can't be read, whose path the error names."""
    fail("videomae", error)


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
