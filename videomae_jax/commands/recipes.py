"""`videomae recipes`: which runs are known, and what one is made of."""

import argparse
import dataclasses
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomae_jax.training.settings import Recipe

COLUMNS = ("recipe", "task", "width", "clip", "batch", "epochs", "base lr", "augmentation")


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "recipes", help="the runs that `pretrain` and `finetune` know", description=show.__doc__
    )
    command.add_argument("name", nargs="?", metavar="NAME", help="show all fields of this one")
    command.add_argument("--json", action="store_true", help="as JSON")
    command.set_defaults(run=show)


def show(options: argparse.Namespace) -> int:
    """List the recipes, or print every field of one as the options that would set it."""
    from videomae_jax.training.recipes import RECIPES

    if options.name is not None and options.name not in RECIPES:
        raise ValueError(f"unknown recipe {options.name!r}; one of: {', '.join(RECIPES)}")
    chosen = RECIPES if options.name is None else {options.name: RECIPES[options.name]}
    if options.json:
        print(json.dumps({name: dataclasses.asdict(recipe) for name, recipe in chosen.items()}))
    elif options.name is None:
        print(table(row(name, recipe) for name, recipe in chosen.items()))
    else:
        print("\n".join(f"{name:<42}{value}" for name, value in fields(chosen[options.name])))
    return 0


def row(name: str, recipe: "Recipe") -> tuple[str, ...]:
    """A recipe's line of the table, see `COLUMNS`."""
    model, augment = recipe.model, recipe.augment
    height, width = model.image_size
    tricks = ("randaugment", "mixup", "cutmix", "erase", "smoothing")
    used = [trick for trick in tricks if getattr(augment, trick)]
    if recipe.task == "pretrain":
        used = [f"{recipe.masking.kind} {recipe.masking.ratio:g}"]
    return (
        name,
        recipe.task,
        str(model.hidden_size),
        f"{model.num_frames}x{height}x{width} {recipe.input.sampling} {recipe.input.rate}",
        str(recipe.input.batch_size),
        f"{recipe.optimizer.epochs:g}",
        f"{recipe.optimizer.base_lr:g}",
        ", ".join(used),
    )


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns as wide as they need to be."""
    lines = [COLUMNS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fields(recipe: Any, prefix: str = "--") -> Iterable[tuple[str, str]]:
    """Each field as an option and its value, as the command line has them."""
    for field in dataclasses.fields(recipe):
        value, name = getattr(recipe, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{name}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else repr(value)
            yield name, shown if not isinstance(value, str) else value or '""'
