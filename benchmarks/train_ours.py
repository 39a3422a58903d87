"""A training step of ours, and what both sides are given: weights, clips, labels, masks."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.sides import draw_clips
from benchmarks.train_theirs import RATE, WEIGHT_DECAY, Prepared
from benchmarks.turns import Side
from videomae_jax.config import VideoMAEConfig
from videomae_jax.training.settings import Input, Optimizer, Recipe

ARCHITECTURES = {"finetune": "VideoClassifier", "pretrain": "VideoPretrainer"}


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained: "finetune" or "pretrain" of a config, `batch` clips a step."""

    name: str
    config: VideoMAEConfig
    batch: int

    def recipe(self, dtype: str, *, remat: bool = False) -> Recipe:
        """Of ours: no augmentation, no dropping, the same constant rate as theirs."""
        rate = RATE * 256 / self.batch
        return Recipe(
            task=self.name,  # pyrefly: ignore[bad-argument-type]
            model=self.config,
            input=Input(batch_size=self.batch),
            optimizer=Optimizer(
                base_lr=rate, min_lr=rate, epochs=1.0, warmup_epochs=0.0, weight_decay=WEIGHT_DECAY
            ),
            dtype=dtype,  # pyrefly: ignore[bad-argument-type]
            remat=remat,
        )

    def inputs(self) -> dict[str, np.ndarray]:
        """Normalised clips as "frames", their "sizes", "labels", and the "mask" of our step."""
        from videomae_jax.training.step import draw_masks

        labels = np.arange(self.batch, dtype=np.int32) % max(self.config.num_labels, 1)
        for_batch, _ = jax.random.split(key())
        recipe = self.recipe("float32")
        masks = draw_masks(for_batch, recipe.masking, self.config, batch=self.batch)
        return {
            "frames": draw_clips(self.config, self.batch),
            "sizes": np.full((self.batch, 2), self.config.image_size, np.int32),
            "labels": labels,
            "mask": np.array(masks["mask"]),
        }


def key() -> jax.Array:
    """The key of every step."""
    return jax.random.key(0)


def weights(task: Task, source: Path) -> Any:
    """Our parameters of transformers' folder, by the converter."""
    from convert import job

    return jax.tree.map(np.array, dict(job.convert(source).params))


def prepare_ours(
    task: Task,
    source: Path,
    inputs: Mapping[str, np.ndarray],
    dtype: str,
    *,
    gradient: bool,
    remat: bool = False,
) -> Prepared:
    """Our step, compiled; with `gradient`, another program tells that of the first step."""
    from videomae_jax.training.optimizer import learning_rates, make_optimizer
    from videomae_jax.training.step import build_model, init_state, make_step

    recipe = task.recipe(dtype, remat=remat)
    params = jax.tree.map(jnp.asarray, weights(task, source))
    schedule = learning_rates(recipe.optimizer, batch_size=task.batch, steps_per_epoch=1000)
    adamw = make_optimizer(
        recipe.optimizer, schedule=schedule, model_config=task.config, params=params
    )
    batch = {name: jnp.asarray(inputs[name]) for name in ("frames", "sizes", "labels")}

    def compiled(optimizer: Any) -> tuple[Callable, Any]:
        step = make_step(
            recipe, optimizer, schedule=schedule, augment=lambda key, frames, *_, **__: frames
        )
        state = init_state(recipe, build_model(recipe), optimizer, params=params)
        # Its own, as the step uses it up.
        state = jax.tree.map(jnp.array, state)
        return jax.jit(step, donate_argnums=0).lower(state, batch, key()).compile(), state

    found = None
    if gradient:
        program, state = compiled(keep_gradient())
        found = flat(program(state, batch, key())[0].opt_state)
    program, state = compiled(adamw)
    held = {"state": state}

    def call() -> jax.Array:
        held["state"], metrics = program(held["state"], batch, key())
        return metrics["loss"]

    return Prepared(Side(call, jax.block_until_ready), float(call()), found)


def keep_gradient() -> Any:
    """An optimizer that changes nothing, and whose state is the last gradient."""
    import optax

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del state, params
        return jax.tree.map(jnp.zeros_like, updates), updates

    return optax.GradientTransformation(lambda params: jax.tree.map(jnp.zeros_like, params), update)


def in_our_order(task: Task, gradient: Mapping[str, np.ndarray]) -> np.ndarray:
    """theirs, by the names of their parameters, as `flat` gives ours."""
    from convert.layouts import HUGGING_FACE
    from convert.translate import translate
    from convert.weights import Tensor
    from videomae_jax.model import ARCHITECTURES as models
    from videomae_jax.model import abstract_params

    tensors = {
        name: Tensor(value.shape, "float32", lambda value=value: value)
        for name, value in gradient.items()
    }
    like = abstract_params(models[ARCHITECTURES[task.name]](task.config))
    return flat(translate(tensors, HUGGING_FACE, like))


def flat(tree: Any) -> np.ndarray:
    """All leaves as one array."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])
