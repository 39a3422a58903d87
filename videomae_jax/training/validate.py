"""How good is the model so far? Loss and accuracy on the validation part: one central view each."""

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from videomae_jax.evaluation import SINGLE
from videomae_jax.losses import classification_loss
from videomae_jax.model import VideoClassifier
from videomae_jax.training.augment import augment
from videomae_jax.training.clips import canvas_of
from videomae_jax.training.devices import Devices
from videomae_jax.training.examples import Examples
from videomae_jax.training.input import make_input
from videomae_jax.training.mixing import one_hot
from videomae_jax.training.settings import Augment, Recipe

logger = logging.getLogger(__name__)


class Validation:
    """(parameters) -> (figures, score): of all examples, each seen once, by all processes.

    A video that can't be read is reported and left out. Figures are val_loss and val_count, and
    with one class a video val_top1 and val_top5, shares of 1. The score is top-1 there, elsewhere
    the loss with its sign changed: higher is better.

    Raises:
        ValueError: for packed examples on another canvas than the recipe's.
    """

    def __init__(self, examples: Examples, recipe: Recipe, devices: Devices):
        # Not after an epoch of training.
        canvas_of(examples, recipe.input, recipe.model)
        self._examples, self._recipe, self._devices = examples, recipe, devices
        self._classes = recipe.model.problem_type in (None, SINGLE)
        model = VideoClassifier(recipe.model, dtype=recipe.dtype)

        def sums(params: Any, batch: Mapping[str, Array]) -> dict[str, Array]:
            logits: Any = model.apply({"params": params}, central(recipe, batch))
            return self._sums(logits, batch["labels"], batch["valid"])

        self._compiled = jax.jit(sums, out_shardings=devices.whole)

    def __call__(self, params: Any) -> tuple[dict[str, float], float]:
        total: dict[str, float] = {}
        batches = make_input(
            self._examples,
            self._recipe.input,
            self._recipe.model,
            train=False,
            seed=self._recipe.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            report=logger.warning,
        )
        with contextlib.closing(batches):
            for batch in batches:
                found = self._compiled(params, self._devices.put(batch))
                for name, value in found.items():
                    total[name] = total.get(name, 0.0) + float(value)
        count = total.pop("count")
        figures = {f"val_{name}": value / max(count, 1) for name, value in total.items()}
        figures["val_count"] = int(count)
        return figures, figures["val_top1"] if self._classes else -figures["val_loss"]

    def _sums(self, logits: Array, labels: Array, valid: Array) -> dict[str, Array]:
        """Over the examples of a batch that are no padding."""
        targets = one_hot(labels, logits.shape[-1], smoothing=0.0) if self._classes else labels
        problem = self._recipe.model.problem_type
        losses = jax.vmap(
            lambda row, target: classification_loss(row[None], target[None], problem_type=problem)
        )(logits, targets)
        found = {"count": valid, "loss": losses}
        if self._classes:
            mine = jnp.take_along_axis(logits, labels[:, None], axis=1)
            # Among equals the lower class comes first, as in `Labels.rank`.
            lower = jnp.arange(logits.shape[-1]) < labels[:, None]
            before = jnp.sum((logits > mine) | ((logits == mine) & lower), axis=1)
            found |= {"top1": before < 1, "top5": before < 5}
        return {name: jnp.sum(jnp.where(valid, values, 0)) for name, values in found.items()}


def central(recipe: Recipe, batch: Mapping[str, Array]) -> Array:
    """Clips of a batch as they are validated: the centre of each video, nothing random."""
    return augment(
        jax.random.key(0),
        batch["frames"],
        batch["sizes"],
        settings=Augment(crop="centre"),
        model=recipe.model,
        mean=recipe.mean,
        std=recipe.std,
    )
