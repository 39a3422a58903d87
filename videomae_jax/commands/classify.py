"""`videomae classify`: name what happens in video files."""

import argparse
import functools
import json
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from videomae_jax.command import fail, log_on_stderr
from videomae_jax.commands.model_options import (
    add_model_options,
    choose_model,
    compile_cache,
    load_model,
)

if TYPE_CHECKING:
    from videomae_jax.config import VideoMAEConfig


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to a parser's `commands`."""
    from videomae_jax.sampling import SAMPLING

    command = commands.add_parser(
        "classify", help="name what happens in video files", description=classify_files.__doc__
    )
    command.add_argument("clips", nargs="+", metavar="CLIP", help="a video file")
    add_model_options(command)
    command.add_argument(
        "--top-k", type=int, default=5, metavar="K", help="classes to print (default: 5)"
    )
    command.add_argument(
        "--sampling",
        choices=list(SAMPLING),
        default="uniform",
        help="which frames the model sees (default: uniform, as transformers' video processor)",
    )
    command.add_argument(
        "--sampling-rate",
        type=int,
        default=4,
        metavar="R",
        help="distance between frames, for the rules that have one (default: 4)",
    )
    command.add_argument(
        "--json", action="store_true", help="one JSON object a video, instead of text"
    )
    command.set_defaults(run=classify_files)


def classify_files(options: argparse.Namespace) -> int:
    """Print the most probable classes of each clip. A bad clip does not stop the others."""
    if options.top_k < 1:
        raise ValueError(f"--top-k must be at least 1, got {options.top_k}")
    if options.sampling_rate < 1:
        raise ValueError(f"--sampling-rate must be at least 1, got {options.sampling_rate}")
    with log_on_stderr("videomae"):
        choose_model(options)
        config = converted_config(options.model)
        # Importing JAX is most of a start: the first clip is decoded meanwhile, if it is known how.
        clips = None if config is None else read_clips(options, config)
        with compile_cache(options):
            return classify_each(options, clips)


def classify_each(
    options: argparse.Namespace, clips: Iterator[tuple[str, Future]] | None = None
) -> int:
    """Load the model and print the classes of one clip after another; returns the exit code."""
    import videomae_jax as vm

    checkpoint = load_model(options)
    code = 0
    for path, reading in clips or read_clips(options, checkpoint.config):
        try:
            predictions = vm.classify(checkpoint, reading.result(), top_k=options.top_k)
        except vm.VideoError as error:
            code = fail("videomae", error)
            continue
        if options.json:
            print(as_json(path, options.model, predictions), flush=True)
        else:
            print(as_text(path, predictions), flush=True)
    return code


def converted_config(model: str) -> "VideoMAEConfig | None":
    """The config of a converted directory; None for what `load` has to convert or to refuse."""
    from videomae_jax.checkpoint import CheckpointError, load_description

    try:
        return load_description(model).config
    except CheckpointError:
        return None


def read_clips(
    options: argparse.Namespace, config: "VideoMAEConfig"
) -> Iterator[tuple[str, Future]]:
    """Each clip's path with its frames, decoded while the one before is classified."""
    from videomae_jax.background import one_ahead
    from videomae_jax.video import read_clip

    read = functools.partial(
        read_clip,
        num_frames=config.num_frames,
        sampling=options.sampling,
        rate=options.sampling_rate,
    )
    return one_ahead(read, options.clips)


def as_json(path: str, model: str, predictions: list) -> str:
    """One line of JSON for one video."""
    entries = [prediction._asdict() for prediction in predictions]
    return json.dumps({"video": path, "model": model, "predictions": entries}, ensure_ascii=False)


def as_text(path: str, predictions: list) -> str:
    """The clip's path, then a line a class."""
    lines = [f"{100 * entry.probability:6.2f} %  {entry.label}" for entry in predictions]
    return "\n".join([path, *lines])
