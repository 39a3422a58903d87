"""`videomae probe`: what the features of a frozen model know about labelled videos."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomae_jax.command import fail, log_on_stderr
from videomae_jax.commands.model_options import (
    add_model_options,
    add_views_options,
    choose_model,
    compile_cache,
    load_model,
    progress_bar,
    views_of,
    whole,
)

if TYPE_CHECKING:
    from videomae_jax.training.examples import Examples

DATA = (
    "labelled videos: a list of `path label` lines, a CSV or Parquet file with columns `path` and "
    "`label`, or a folder per class"
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "probe",
        help="a linear or attentive probe, or nearest neighbours, on frozen features",
        description=probe_features.__doc__,
    )
    command.add_argument(
        "--kind",
        "--recipe",
        choices=("linear", "attentive", "knn"),
        default="linear",
        help="linear: on the mean of all tokens; attentive: a learnt query on the tokens; knn: by "
        "the 20 most similar training videos (default: linear)",
    )
    command.add_argument("--data", required=True, metavar="MANIFEST", help=f"to learn from: {DATA}")
    command.add_argument(
        "--val-data",
        metavar="MANIFEST",
        help="to count on (default: the split val, or else test, of --data)",
    )
    command.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="for the features, which the next run uses again, the figures in probe.json, and the "
        "probe: linear ones as a model in DIR/final, for classify and evaluate",
    )
    add_model_options(command)
    command.add_argument("--init", dest="model", metavar="CKPT", help="the same as --model")
    add_views_options(command)
    command.add_argument(
        "--epochs", type=whole, default=30, metavar="N", help="of attentive probes (default: 30)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="(default: 0)")
    command.add_argument(
        "--json",
        action="store_true",
        help="one JSON object: top1, top5 (shares from 0 to 1), interval, count, failed, per_class",
    )
    command.set_defaults(run=probe_features)


def probe_features(options: argparse.Namespace) -> int:
    """Fit a probe on what a frozen model says of videos, and count on others.

    Each video is decoded and computed once; features are kept, so that another probe of the same
    videos takes seconds. The weight decay of a linear probe is chosen on a held-out part of the
    training videos. A video that can't be read is one line on stderr.
    """
    views = views_of(options)
    with log_on_stderr("videomae"), compile_cache(options):
        need_packages()
        choose_model(options)
        from videomae_jax.training.probe_run import Probing, run_probe

        train, validation = read_sets(options)
        found = run_probe(
            options.kind,
            load_model(options),
            train=train,
            validation=validation,
            workdir=Path(options.workdir),
            probing=Probing(
                views=views,
                batch=options.batch,
                workers=options.workers,
                epochs=options.epochs,
                seed=options.seed,
                on_bad=say_bad,
                progress=progress_bar,
            ),
        )
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print(as_text(found, options.workdir))
    return 0


def need_packages() -> None:
    """Say at once what the command lacks.

    Raises:
        ValueError: with what to install.
    """
    import importlib.util

    if not importlib.util.find_spec("optax"):
        raise ValueError("optax is missing: pip install 'videomae-jax[train]'")


def read_sets(options: argparse.Namespace) -> "tuple[Examples, Examples]":
    """The videos to learn from, and those to count on, whose classes have the same numbers.

    Raises:
        ValueError: for data that can't be read, or nothing to count on.
    """
    from videomae_jax.training.examples import read_examples, splits_of
    from videomae_jax.training.listing import read_rows

    rows = read_rows(options.data)
    train = read_examples(rows, split="train")
    other = rows if options.val_data is None else read_rows(options.val_data)
    usual = next((name for name in ("val", "test") if name in splits_of(other)), None)
    if options.val_data is None and usual is None:
        raise ValueError(
            f"{options.data}: has no split val or test to count on; name other videos by --val-data"
        )
    return train, read_examples(other, split=usual, classes=train.classes)


def say_bad(path: str, error: ValueError) -> None:
    """A line for a video that can't be read."""
    fail("videomae", error)


def as_text(found: dict[str, Any], workdir: str) -> str:
    """The figures as lines for a terminal."""
    from videomae_jax.commands.evaluation_text import percent, table

    rows = []
    for name, key in (("top-1", "top1"), ("top-5", "top5")):
        low, high = found["interval"][key]
        rows.append([name, percent(found[key]), f"{100 * low:.1f} to {100 * high:.1f} %"])
    level = f"{100 * found['interval']['level']:.0f} % interval"
    lines = [
        f"{found['kind']} probe: learnt from {found['train_count']} videos, counted on "
        f"{found['count']}",
        *table(["", "", level], rows),
    ]
    failed = found["failed"] + found["train_failed"]
    if failed:
        lines.append(f"{failed} could not be read")
    if "weight_decay" in found:
        lines.append(f"weight decay {found['weight_decay']:g}, chosen on a held-out part")
        lines.append(f"written to {Path(workdir) / 'final'}")
    return "\n".join(lines)
