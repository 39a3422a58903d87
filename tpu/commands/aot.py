"""`python -m tpu aot`: its options, and what it prints."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from tpu.aot import Request, account, prepare, set_environment
from tpu.job import SHARDINGS
from tpu.report_text import as_text


def add_aot(commands: Any) -> None:
    """Add the command to a parser's `commands`."""
    command = commands.add_parser(
        "aot",
        help="compile for a TPU on a machine that has none, and account for it",
        description=compile_ahead.__doc__,
    )
    command.add_argument(
        "--topology",
        required=True,
        metavar="KIND:SIDES",
        help="v5e (one chip), v5e:16x16, v6e:2x2, v4:2x2x1, v5p:4x4x4, ...",
    )
    add_network(command)
    command.add_argument(
        "--recipe",
        metavar="NAME",
        help="the training step of a recipe (see `videomae recipes`) in place of the forward pass, "
        "its network and sizes; --dtype is of the arithmetic",
    )
    command.add_argument(
        "--batch", type=int, default=32, metavar="B", help="clips a chip (default: 32)"
    )
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="of parameters and arithmetic (default: bfloat16)",
    )
    command.add_argument(
        "--clips",
        choices=("uint8", "bfloat16", "float32"),
        help="dtype of the clips that come in; uint8 is normalised on the chip (default: --dtype)",
    )
    command.add_argument(
        "--backend", metavar="NAME", help="attention: pallas (the default on TPUs) or xla"
    )
    add_sharding(command)
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    command.set_defaults(run=compile_ahead)


def add_sharding(command: argparse.ArgumentParser) -> None:
    """Add the options that say how parameters lie on the devices."""
    command.add_argument(
        "--sharding",
        choices=SHARDINGS,
        default="replicated",
        help="how parameters lie on the devices, for models that don't fit on one: fsdp cuts all, "
        "tensor the MLPs (default: replicated)",
    )
    command.add_argument(
        "--model-axis",
        type=int,
        metavar="K",
        help="devices that share the parameters, for fsdp and tensor (default: all)",
    )


def add_network(command: argparse.ArgumentParser) -> None:
    """Add the options that `chosen_config` reads."""
    from videomae_jax.config import VARIANTS

    network = command.add_mutually_exclusive_group()
    network.add_argument(
        "--model", choices=list(VARIANTS), default="small", help="its size (default: small)"
    )
    network.add_argument(
        "--config",
        type=Path,
        metavar="FILE|DIR",
        help="another network: a directory that `python -m convert` wrote, or a config.json of it "
        "or of Hugging Face",
    )
    command.add_argument(
        "--num-heads", type=int, metavar="N", help="attention heads, of the same width in all"
    )
    command.add_argument(
        "--num-labels", type=int, metavar="N", help="classes (default: the config's; 400)"
    )


def compile_ahead(options: argparse.Namespace) -> int:
    """Print what the classifier's forward pass, or a training step, needs on a TPU, modelled."""
    # Before the first import of JAX, which reads it then.
    set_environment()
    if options.batch < 1:
        raise ValueError(f"--batch must be at least 1, got {options.batch}")
    recipe = chosen_recipe(options)
    config = chosen_config(options) if recipe is None else recipe.model
    prepare()
    request = Request(
        topology=options.topology,
        config=config,
        batch=options.batch,
        dtype=options.dtype,
        clips=options.clips,
        backend=options.backend,
        sharding=options.sharding,
        model_axis=options.model_axis,
    )
    if recipe is None:
        found = account(request)
        name = options.model if options.config is None else str(options.config)
    else:
        from tpu.aot_train import account_training

        found, name = account_training(request, recipe), f"a step of {options.recipe}"
    if options.json:
        asked = {"model": name, **dataclasses.asdict(request), "config": config.to_dict()}
        print(json.dumps(asked | found.to_dict()))
    else:
        clips = options.clips or ("uint8" if recipe else options.dtype)
        heads = config.num_attention_heads
        what = f"{name}, {heads} heads, {options.dtype}, {options.batch} {clips} clips a chip"
        print(as_text(found, what=what))
    return 0


def chosen_recipe(options: argparse.Namespace) -> Any:
    """The recipe of `--recipe`, with what other options say in it; None without.

    Raises:
        ValueError: for a name that is none.
    """
    if options.recipe is None:
        return None
    from videomae_jax.training.recipes import RECIPES

    if options.recipe not in RECIPES:
        raise ValueError(f"no recipe {options.recipe!r}; one of: {', '.join(RECIPES)}")
    recipe = RECIPES[options.recipe]
    model = recipe.model
    model = dataclasses.replace(
        model,
        num_attention_heads=options.num_heads or model.num_attention_heads,
        # What the data would say.
        num_labels=options.num_labels or model.num_labels or 400,
    )
    return dataclasses.replace(recipe, model=model, dtype=options.dtype)


def chosen_config(options: argparse.Namespace) -> Any:
    """The config of `--model` or `--config`, with what other options say in it.

    Raises:
        ValueError: for a file that holds none, or fields that no network can be built from.
    """
    from videomae_jax.config import VARIANTS

    config = VARIANTS[options.model] if options.config is None else read_config(options.config)
    fields = {"num_attention_heads": options.num_heads, "num_labels": options.num_labels}
    return dataclasses.replace(
        config, **{name: value for name, value in fields.items() if value is not None}
    )


def read_config(path: Path) -> Any:
    """The config of a converted directory, or of a Hugging Face folder or `config.json`.

    Raises:
        ValueError: for what holds none, with the path.
    """
    from videomae_jax.checkpoint import is_converted, load_description
    from videomae_jax.config import VideoMAEConfig

    if path.name == "config.json":
        path = path.parent
    if is_converted(path):
        return load_description(path).config
    file = path if path.is_file() else path / "config.json"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError("it is no JSON object")
        return VideoMAEConfig.from_hf(fields)
    except OSError as error:
        raise ValueError(f"--config {file}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"--config {file}: {error}") from error
