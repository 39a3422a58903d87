"""`run`: a recipe and its data -> a trained model, in a folder that can be gone on with."""

import contextlib
import dataclasses
import logging
import math
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax

from videomae_jax.labels import Labels
from videomae_jax.training.assembly import Training, final_weights
from videomae_jax.training.checkpoints import Checkpoints
from videomae_jax.training.devices import Devices
from videomae_jax.training.examples import Examples, check_alike
from videomae_jax.training.finish import labels_of, write_final
from videomae_jax.training.input import steps_per_epoch
from videomae_jax.training.loop import Loop, Parts, Plan
from videomae_jax.training.metrics import Metrics, TensorBoard, Wandb
from videomae_jax.training.optimizer import total_steps
from videomae_jax.training.settings import Recipe
from videomae_jax.training.start import host
from videomae_jax.training.workdir import claim, description
from videomae_jax.weights import save_params

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is done; none of it changes what a run computes but `sharding`, by rounding.

    log_every: steps that a line of the metrics is about.
    sharding, model_axis: see `videomae_jax.sharding`, over the devices of all processes.
    on_bad_video: "skip" takes the next video for one that can't be read, "stop" raises.
    """

    name: str = ""
    on_bad_video: Literal["skip", "stop"] = "skip"
    sharding: str = "replicated"
    model_axis: int | None = None
    log_every: int = 20
    tensorboard: bool = False
    wandb: bool = False


def run(
    recipe: Recipe,
    *,
    train: Examples,
    validation: Examples | None = None,
    workdir: Path,
    init: str | None = None,
    steps: int | None = None,
    options: Options | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Train, or go on with what is in `workdir`; returns the directory of the model.

    train, validation: as `read_examples` gives them, labelled for the recipe's task; what there is
        to validate on is looked at every `evaluate_every` epochs.
    init: what `videomae_jax.load` takes, to start from; None: drawn weights.
    steps: in place of the recipe's epochs; the schedule is shortened to it.
    stop: set by another thread or a signal's handler to end early, see `Stopped`.

    Raises:
        CheckpointError: if `workdir` holds another run, or can't be used.
        NotFinite: if the loss becomes NaN or infinite.
        Stopped: when `stop` is set; the checkpoint is written.
        ValueError: for data or a start that doesn't fit the recipe, naming both.
    """
    options = Options() if options is None else options
    recipe = completed(recipe, train, steps=steps)
    if validation is not None:
        check_alike(train, validation, num_labels=recipe.model.num_labels)
    labels = labels_of(train.classes, recipe.model) if recipe.task == "finetune" else None
    facts = description(recipe, train, init=init)
    final = workdir / "final"
    with claim(workdir, facts, write=jax.process_index() == 0):
        if final.is_dir():
            return final
        with _prepared(recipe, train, validation, workdir, labels, init, options, stop) as loop:
            loop.run()
            weights, total = final_weights(loop.state), loop.plan.total
        trained = {
            "recipe": options.name,
            "steps": total,
            "average": recipe.optimizer.ema or None,
            "init": init,
            "data": facts["data"],
        }
        _finish(final, weights, recipe, labels, trained)
    return final


def completed(recipe: Recipe, train: Examples, *, steps: int | None = None) -> Recipe:
    """The recipe with what the data says: the number of classes, and epochs of `steps`.

    Raises:
        ValueError: for no videos at all, no labels where the task needs them, or more classes than
            the recipe has.
    """
    if not len(train):
        raise ValueError("there are no videos to train on")
    model = recipe.model
    if recipe.task == "finetune":
        if train.labels is None:
            raise ValueError("fine-tuning needs labels, the data has none")
        model = dataclasses.replace(model, num_labels=model.num_labels or train.num_labels)
        if train.num_labels > model.num_labels:
            raise ValueError(
                f"the data has {train.num_labels} classes, the recipe's model.num_labels is "
                f"{model.num_labels}; 0 takes the data's"
            )
    optimizer = recipe.optimizer
    if steps is not None:
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        epoch = steps_per_epoch(train, recipe.input)
        epochs = steps / epoch
        # So that rounding down gives the steps again.
        while int(epochs * epoch) < steps:
            epochs = math.nextafter(epochs, math.inf)
        warmup = optimizer.warmup_epochs * epochs / optimizer.epochs
        optimizer = dataclasses.replace(optimizer, epochs=epochs, warmup_epochs=warmup)
    return dataclasses.replace(recipe, model=model, optimizer=optimizer)


def plan_of(recipe: Recipe, train: Examples, *, validate: bool, log_every: int) -> Plan:
    """When what is done."""
    epoch = steps_per_epoch(train, recipe.input)
    validate = validate and recipe.evaluate_every > 0
    return Plan(
        total=total_steps(recipe.optimizer, steps_per_epoch=epoch),
        steps_per_epoch=epoch,
        checkpoint=recipe.checkpoint_every or epoch,
        validate=max(1, round(recipe.evaluate_every * epoch)) if validate else 0,
        log=max(1, log_every),
    )


@contextlib.contextmanager
def _prepared(
    recipe: Recipe,
    train: Examples,
    validation: Examples | None,
    workdir: Path,
    labels: Labels | None,
    init: str | None,
    options: Options,
    stop: threading.Event | None,
) -> Iterator[Loop]:
    """The loop, at its first step or after the last checkpoint's."""
    devices = Devices(sharding=options.sharding, model_axis=options.model_axis)
    devices.check_batch(recipe.input.batch_size, parts=recipe.optimizer.accumulate)
    plan = plan_of(recipe, train, validate=validation is not None, log_every=options.log_every)
    training = Training(recipe, train, devices, steps_per_epoch=plan.steps_per_epoch)
    with contextlib.ExitStack() as leaving:
        # First, since it refuses data that doesn't fit: Orbax's threads don't like to be cut short.
        batches = training.batches(options.on_bad_video)
        leaving.callback(batches.close)
        checkpoints = Checkpoints(workdir / "checkpoints", keep=recipe.keep)
        leaving.callback(checkpoints.close)
        done = checkpoints.latest or 0
        if done:
            state, position = checkpoints.restore(training.like)
            batches.set_state(position)
            logger.info("going on after step %d of %d", done, plan.total)
        else:
            state = training.begin(init, labels)
        metrics = _metrics(recipe, workdir, options, resumed=done)
        parts = Parts(
            step=training.step,
            batches=batches,
            devices=devices,
            checkpoints=checkpoints,
            paths=train.paths,
            clips=recipe.input.batch_size * recipe.input.repeats,
            validate=training.validation(validation),
            metrics=metrics,
            stop=threading.Event() if stop is None else stop,
        )
        if metrics is not None:
            leaving.callback(metrics.close)
        yield Loop(parts, plan, state, done=done)


def _metrics(recipe: Recipe, workdir: Path, options: Options, *, resumed: int) -> Metrics | None:
    """Where the figures go; one process notes them for all."""
    if jax.process_index():
        return None
    writers: list[Any] = []
    if options.tensorboard:
        writers.append(TensorBoard(workdir, resumed=resumed))
    if options.wandb:
        writers.append(Wandb(workdir, dataclasses.asdict(recipe)))
    return Metrics(workdir / "metrics.jsonl", resumed=resumed, writers=tuple(writers))


def _finish(
    final: Path,
    weights: Any,
    recipe: Recipe,
    labels: Labels | None,
    facts: Mapping[str, Any],
) -> None:
    """Write the model; one process for all, which wait for it."""
    whole = host(weights)
    if jax.process_count() == 1:
        write_final(final, whole, recipe, labels, facts=facts)
        return
    from jax.experimental import multihost_utils

    # Orbax writes nothing in one process that the others don't take part in.
    passing, first = final.with_name(".weights"), jax.process_index() == 0
    if first:
        shutil.rmtree(passing, ignore_errors=True)
        passing.mkdir()
    multihost_utils.sync_global_devices("room for the weights")
    save_params(passing, whole)
    if first:
        write_final(final, passing, recipe, labels, facts=facts)
        passing.rmdir()
    multihost_utils.sync_global_devices("final")
