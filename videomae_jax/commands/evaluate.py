"""`videomae evaluate`: how good a model is on labelled videos."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from videomae_jax.command import log_on_stderr
from videomae_jax.commands.model_options import (
    add_model_options,
    add_views_options,
    choose_model,
    compile_cache,
    load_model,
    progress_bar,
    say_bad,
    views_of,
)

if TYPE_CHECKING:
    from videomae_jax.inference import Checkpoint
    from videomae_jax.training.examples import Examples


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "evaluate", help="accuracy on labelled videos", description=evaluate_videos.__doc__
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="MANIFEST",
        help="labelled videos: a list of `path label` lines, a CSV or Parquet file with columns "
        "`path` and `label`, or a folder per class; labels are names of the model's classes, or "
        "their numbers",
    )
    command.add_argument(
        "--split",
        metavar="NAME",
        help="of data that has splits: train, val or test (default: test, else val, else all)",
    )
    add_model_options(command)
    add_views_options(command)
    command.add_argument(
        "--shuffle-frames",
        type=int,
        metavar="SEED",
        help="put the frames of each clip in random order: what is lost is what the model knew "
        "from motion",
    )
    command.add_argument(
        "--json",
        action="store_true",
        help="one JSON object: top1, top5 (shares from 0 to 1), interval (Wilson's, 95 %%), count "
        "(videos read), failed (not read, in no other figure), per_class, confusion (a row for "
        "each class that is true), published (of a known checkpoint)",
    )
    command.set_defaults(run=evaluate_videos)


def evaluate_videos(options: argparse.Namespace) -> int:
    """Top-1 and top-5 on labelled videos, of each class, and which classes are taken for which.

    Mean average precision for a model of several labels, errors for one of regression. A video
    that can't be read is one line on stderr and counts as failed; the exit code is 2 if all are.
    """
    views = views_of(options)
    with log_on_stderr("videomae"), compile_cache(options):
        choose_model(options)
        from videomae_jax.evaluation import evaluate, label_kind

        checkpoint = load_model(options)
        examples = read_videos(options, label_kind(checkpoint))
        figures = evaluate(
            checkpoint,
            examples,
            views=views,
            batch=options.batch,
            shuffle_frames=options.shuffle_frames,
            workers=options.workers,
            on_bad=say_bad,
            progress=progress_bar(len(examples)),
        )
    figures = settings(options, views, checkpoint) | figures
    if options.json:
        print(json.dumps(figures, ensure_ascii=False))
    else:
        from videomae_jax.commands.evaluation_text import as_text

        print(as_text(figures))
    return 0


def read_videos(options: argparse.Namespace, kind: str) -> "Examples":
    """The labelled videos of the split that is asked for, or that an evaluation is about.

    Raises:
        ValueError: for data that can't be read, or that holds no videos.
    """
    from videomae_jax.training.examples import read_examples, splits_of
    from videomae_jax.training.listing import read_rows

    rows = read_rows(options.data)
    there = splits_of(rows)
    usual = next((name for name in ("test", "val") if name in there), None)
    examples = read_examples(rows, split=options.split or usual, kind=kind)
    if examples.packed is not None:
        raise ValueError(
            f"{options.data}: is a packed folder; evaluation reads the videos themselves, name "
            f"what was packed"
        )
    return examples


def settings(options: argparse.Namespace, views: Any, checkpoint: "Checkpoint") -> dict[str, Any]:
    """What the figures are of."""
    return {
        "model": options.model,
        "data": options.data,
        "views": str(views),
        "sampling": views.sampling,
        "dtype": options.dtype,
        "num_heads": checkpoint.config.num_attention_heads,
        "shuffle_frames": options.shuffle_frames,
    }
