"""What commands that train ask alike: which recipe, which data, where, and on how many machines."""

import argparse
import contextlib
import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from videomae_jax.command import log_on_stderr
from videomae_jax.commands.model_options import add_compile_cache_option, compile_cache

if TYPE_CHECKING:
    from videomae_jax.training.settings import Recipe


def add_training_options(command: argparse.ArgumentParser) -> None:
    """Add the options of `pretrain` and `finetune`; what argparse doesn't know are fields."""
    command.add_argument(
        "--recipe", required=True, metavar="NAME", help="see `videomae recipes`; its fields, too"
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="DATA",
        help="a list of `path label` lines, CSV or Parquet with columns path and label (and "
        "split), a folder per class, or what `videomae pack` wrote",
    )
    command.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="the run's folder: checkpoints, metrics.jsonl, and the model in DIR/final; the same "
        "command again goes on where it ended",
    )
    command.add_argument(
        "--init",
        metavar="CKPT",
        help="weights to start from: a directory that `python -m convert` or a run wrote, or a "
        "checkpoint for PyTorch (default: drawn)",
    )
    command.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="train for N steps in place of the recipe's epochs; the schedule is scaled to it",
    )
    command.add_argument(
        "--on-bad-video",
        choices=["skip", "stop"],
        default="skip",
        help="one that can't be read: report it once and take the next, or stop (default: skip)",
    )
    command.add_argument(
        "--log-every",
        type=int,
        default=20,
        metavar="N",
        help="steps from one line of the metrics to the next (default: 20)",
    )
    command.add_argument(
        "--tensorboard", action="store_true", help="write figures for TensorBoard, too"
    )
    command.add_argument("--wandb", action="store_true", help="send them to Weights & Biases, too")
    _add_machine_options(command)
    command.set_defaults(fields=[])


def _add_machine_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sharding",
        choices=["replicated", "fsdp"],
        default="replicated",
        help="fsdp: each device holds a part of the parameters and moments (default: replicated)",
    )
    command.add_argument(
        "--model-axis",
        type=int,
        metavar="N",
        help="with fsdp, devices that share a copy (default: all)",
    )
    command.add_argument(
        "--distributed",
        action="store_true",
        help="start jax.distributed, one model on all processes; TPU slices, GKE, SLURM and MPI "
        "are recognised, elsewhere say the three options that follow",
    )
    command.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0")
    command.add_argument("--num-processes", type=int, metavar="N", help="how many there are")
    command.add_argument("--process-id", type=int, metavar="I", help="which this is, from 0")
    add_compile_cache_option(command)


def recipe_of(options: argparse.Namespace, task: str) -> "Recipe":
    """The recipe of that name, with the fields that the command line says.

    Raises:
        ValueError: for an unknown name or field, or a recipe of another task.
    """
    from videomae_jax.training.recipes import RECIPES, override

    if options.recipe not in RECIPES:
        names = [name for name, recipe in RECIPES.items() if recipe.task == task]
        raise ValueError(f"unknown recipe {options.recipe!r}; one of: {', '.join(names)}")
    recipe = override(RECIPES[options.recipe], options.fields)
    if recipe.task != task:
        raise ValueError(
            f"recipe {options.recipe} is for `videomae {recipe.task}`; see `videomae recipes`"
        )
    return recipe


@contextlib.contextmanager
def training_session(options: argparse.Namespace) -> Iterator[Any]:
    """Logging, the other processes, SIGTERM and compiled programs; yields the event to stop."""
    need_packages("grain", "optax", "tyro")
    with log_on_stderr("videomae"):
        from videomae_jax.training.processes import join, stop_on_sigterm

        if options.distributed:
            join(options.coordinator, options.num_processes, options.process_id)
        # After jax.distributed, which handles the signal itself.
        with stop_on_sigterm() as stop, compile_cache(options):
            yield stop


def need_packages(*names: str) -> None:
    """Say at once what a command lacks.

    Raises:
        ValueError: with what to install.
    """
    for name in names:
        if not importlib.util.find_spec(name):
            raise ValueError(f"{name} is not installed; pip install 'videomae-jax[train]'")


def run_options(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of `training.run.Options`."""
    return {
        "name": options.recipe,
        "on_bad_video": options.on_bad_video,
        "sharding": options.sharding,
        "model_axis": options.model_axis,
        "log_every": options.log_every,
        "tensorboard": options.tensorboard,
        "wandb": options.wandb,
    }
