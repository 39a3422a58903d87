"""The end of a run: a converted directory like any other, made by training."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from videomae_jax.checkpoint import Description, save
from videomae_jax.config import VideoMAEConfig
from videomae_jax.labels import Labels
from videomae_jax.processing import Preprocess
from videomae_jax.training.settings import Recipe
from videomae_jax.weights import Params

FORMAT = "videomae_jax/training/1"

ARCHITECTURE_OF = {"pretrain": "VideoPretrainer", "finetune": "VideoClassifier"}


def write_final(
    directory: Path,
    params: Params | Path,
    recipe: Recipe,
    labels: Labels | None,
    *,
    facts: Mapping[str, Any],
) -> None:
    """Write the trained model, whole or not at all.

    params: whole, float32, the average (EMA) where there is one; or their folder, see `save`.
    facts: of the run, for the report: its recipe's name, steps, what it started from.

    Raises:
        CheckpointError: if the directory exists or can't be written.
    """
    description = Description(
        architecture=ARCHITECTURE_OF[recipe.task],
        config=recipe.model,
        preprocess=preprocess(recipe),
        labels=labels,
        conversion={
            "format": FORMAT,
            "trained": dict(facts),
            "recipe": dataclasses.asdict(recipe),
        },
    )
    save(directory, params, description, prove=lambda folder: {"written": files_written(folder)})


def preprocess(recipe: Recipe) -> Preprocess:
    """What the model wants to be fed with: the recipe's size, mean and standard deviation."""
    return dataclasses.replace(
        Preprocess.default(recipe.model.image_size), image_mean=recipe.mean, image_std=recipe.std
    )


def labels_of(classes: tuple[str, ...] | None, config: VideoMAEConfig) -> Labels:
    """The names of the classes; what has none is LABEL_i.

    Raises:
        ValueError: for more names than the model has classes.
    """
    names = classes or ()
    if len(names) > config.num_labels:
        raise ValueError(
            f"the data has {len(names)} classes, the recipe's model.num_labels is "
            f"{config.num_labels}; 0 takes the data's"
        )
    return Labels((*names, *Labels.numbered(config.num_labels).names[len(names) :]))


def files_written(folder: Path) -> list[dict[str, Any]]:
    """{"name", "bytes", "sha256"} of each file, as `checkpoint.check_sizes` compares them."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = path.relative_to(folder).as_posix()
        found.append({"name": name, "bytes": path.stat().st_size, "sha256": digest})
    return found
