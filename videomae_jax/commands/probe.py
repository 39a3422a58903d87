"""`videomae probe`: what the features of a frozen model know about labelled videos."""

import argparse
import json
from pathlib import Path
from typing import Any

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
    whole,
)
from videomae_jax.commands.training_options import need_packages

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
        need_packages("optax")
        choose_model(options)
        from videomae_jax.training.examples import read_sets
        from videomae_jax.training.probe_run import Probing, run_probe

        train, validation = read_sets(options.data, options.val_data, parts=("val", "test"))
        if validation is None:
            raise ValueError(
                f"{options.data}: has no split val or test to count on; name other videos by "
                f"--val-data"
            )
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


def as_text(found: dict[str, Any], workdir: str) -> str:
    """The figures as lines for a terminal."""
    from videomae_jax.commands.evaluation_text import accuracy

    lines = [
        f"{found['kind']} probe: learnt from {found['train_count']} videos, counted on "
        f"{found['count']}",
        *accuracy(found),
    ]
    failed = found["failed"] + found["train_failed"]
    if failed:
        lines.append(f"{failed} could not be read")
    if "weight_decay" in found:
        lines.append(f"weight decay {found['weight_decay']:g}, chosen on a held-out part")
        lines.append(f"written to {Path(workdir) / 'final'}")
    return "\n".join(lines)
