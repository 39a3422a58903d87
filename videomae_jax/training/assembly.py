"""A recipe, its data and the devices -> what the loop runs: the state, its step, the batches."""

import logging
from collections.abc import Callable
from typing import Any, Literal

import jax

from videomae_jax.labels import Labels
from videomae_jax.losses import balanced_weights
from videomae_jax.training.devices import Devices
from videomae_jax.training.examples import Examples
from videomae_jax.training.initial import draw_params
from videomae_jax.training.input import Batches, make_input
from videomae_jax.training.optimizer import learning_rates, make_optimizer
from videomae_jax.training.settings import Recipe
from videomae_jax.training.start import host, place, take_over
from videomae_jax.training.step import State, build_model, init_state, make_step
from videomae_jax.training.validate import Validation

logger = logging.getLogger(__name__)


class Training:
    """All of a run that its recipe decides.

    like: the state as `jax.ShapeDtypeStruct`, each with its place on the devices.
    step: see `Devices.compile_step`.
    """

    def __init__(
        self, recipe: Recipe, examples: Examples, devices: Devices, *, steps_per_epoch: int
    ):
        self._recipe, self._examples, self._devices = recipe, examples, devices
        self._model = build_model(recipe)
        schedule = learning_rates(
            recipe.optimizer,
            batch_size=recipe.input.batch_size,
            steps_per_epoch=steps_per_epoch,
        )
        params = jax.eval_shape(self._draw)
        self._optimizer = make_optimizer(
            recipe.optimizer, schedule=schedule, model_config=recipe.model, params=params
        )
        like = jax.eval_shape(self._state, params)
        self.like: State = jax.tree.map(
            lambda leaf, sharding: leaf.update(sharding=sharding), like, devices.shardings(like)
        )
        step = make_step(
            recipe,
            self._optimizer,
            schedule=schedule,
            model=self._model,
            **class_weights(recipe, examples),
        )
        self.step = devices.compile_step(step, self.like, seed=recipe.seed)

    def _draw(self) -> Any:
        return draw_params(jax.random.key(self._recipe.seed), self._model)

    def _state(self, params: Any) -> State:
        return init_state(self._recipe, self._model, self._optimizer, params=params)

    def begin(self, init: str | None, labels: Labels | None) -> State:
        """The state before the first step, each device with its part of it.

        Raises:
            ValueError: if `init` can't be loaded, or is no start for this model.
        """
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like)
        params = jax.jit(self._draw, out_shardings=shardings.params)()
        if init is not None:
            from videomae_jax.inference import load

            checkpoint = load(init, param_dtype="float32")
            params = take_over(host(params), checkpoint, self._recipe, labels, source=init)
            params = place(params, shardings.params)
        return jax.jit(self._state, out_shardings=shardings)(params)

    def batches(self, on_bad_video: Literal["skip", "stop"]) -> Batches:
        """The iterator over this process's share of the examples, at its beginning."""
        return make_input(
            self._examples,
            self._recipe.input,
            self._recipe.model,
            train=True,
            seed=self._recipe.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            on_bad_video=on_bad_video,
            report=logger.warning,
        )

    def validation(
        self, examples: Examples | None
    ) -> Callable[[State], tuple[dict[str, float], float]] | None:
        """Of a state: of the weights that the run would end with."""
        if examples is None:
            return None
        of_params = Validation(examples, self._recipe, self._devices)
        return lambda state: of_params(final_weights(state))


def final_weights(state: State) -> Any:
    """The average of the weights where there is one, else the last."""
    return state.params if state.ema is None else state.ema


def class_weights(recipe: Recipe, examples: Examples) -> dict[str, Any]:
    """Options of the step.

    Raises:
        ValueError: for weights of other than single classes.
    """
    if not recipe.class_weights:
        return {}
    labels = examples.labels
    if recipe.task != "finetune" or labels is None or labels.ndim != 1:
        raise ValueError(f"class_weights {recipe.class_weights!r} needs one class for each video")
    return {"class_weights": balanced_weights(labels, recipe.model.num_labels)}
