"""`videomae pretrain` and `videomae finetune`: a recipe and videos -> a model."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomae_jax.command import fail
from videomae_jax.commands.training_options import (
    add_training_options,
    recipe_of,
    run_options,
    training_session,
)

if TYPE_CHECKING:
    from videomae_jax.training.examples import Examples
    from videomae_jax.training.settings import Recipe

NOT_FINITE = 3
"""The exit code where the loss became NaN or infinite."""


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the commands to a parser's `commands`."""
    command = commands.add_parser(
        "pretrain",
        help="train a masked autoencoder on videos without labels",
        description=pretrain.__doc__,
        epilog="Any field of the recipe can be set: --optimizer.base-lr 1e-3",
        allow_abbrev=False,
    )
    add_training_options(command)
    command.set_defaults(run=pretrain)
    command = commands.add_parser(
        "finetune",
        help="train a classifier on labelled videos",
        description=finetune.__doc__,
        epilog="Any field of the recipe can be set: --optimizer.base-lr 1e-3",
        allow_abbrev=False,
    )
    add_training_options(command)
    command.add_argument(
        "--val-data",
        metavar="DATA",
        help="what to validate on (default: the part `val` of --data, if it has one)",
    )
    command.set_defaults(run=finetune)


def pretrain(options: argparse.Namespace) -> int:
    """Masked pre-training; labels and the parts val and test of the data are left aside."""
    with training_session(options) as stop:
        from videomae_jax.training.examples import read_examples

        recipe = recipe_of(options, "pretrain")
        train = read_examples(options.data, split="train", kind="none")
        return _train(options, recipe, train, None, stop)


def finetune(options: argparse.Namespace) -> int:
    """Train a classifier, from a pre-trained model where --init says one.

    Names of classes are kept in the model; labels may also be several for each video, or numbers to
    predict, see the recipe's --model.problem-type.
    """
    with training_session(options) as stop:
        from videomae_jax.evaluation import KINDS, SINGLE
        from videomae_jax.training.examples import read_sets

        recipe = recipe_of(options, "finetune")
        kind = KINDS[recipe.model.problem_type or SINGLE]
        train, validation = read_sets(options.data, options.val_data, kind=kind)
        return _train(options, recipe, train, validation, stop)


def _train(
    options: argparse.Namespace,
    recipe: "Recipe",
    train: "Examples",
    validation: "Examples | None",
    stop: Any,
) -> int:
    from videomae_jax.training.loop import NotFinite, Stopped
    from videomae_jax.training.processes import leave
    from videomae_jax.training.run import Options, run

    code = 0
    try:
        final = run(
            recipe,
            train=train,
            validation=validation,
            workdir=Path(options.workdir),
            init=options.init,
            steps=options.steps,
            options=Options(**run_options(options)),
            stop=stop,
        )
        print(f"written to {final}")
    except Stopped:
        sys.stderr.write("videomae: stopped by SIGTERM; run the same command again to go on\n")
    except NotFinite as error:
        fail("videomae", error)
        code = NOT_FINITE
    except ValueError as error:
        if not options.distributed:
            raise
        leave(fail("videomae", error))
    return code
