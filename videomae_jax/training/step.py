"""One update: frames -> clips -> loss -> gradient -> parameters, a pure function for `jax.jit`.

    step(state, batch, key) -> (state, {"loss", "grad_norm", "lr"})

`batch` is as `make_input` gives it, "frames" uint8 [b, T, h, w, C] and "sizes" int32 [b, 2], and
"labels" for fine-tuning, of all devices. `key` is the step's own, so that a step depends on the
state, the batch and the key alone. All that is random is drawn inside. "grad_norm" is that before
clipping, "lr" the rate that the step had.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from videomae_jax.config import VideoMAEConfig
from videomae_jax.losses import classification_loss, pretraining_loss
from videomae_jax.masking import random_mask, running_cell_mask, tube_mask
from videomae_jax.model import VideoClassifier, VideoPretrainer
from videomae_jax.training.settings import Masking, Recipe

Batch = Mapping[str, Any]
Metrics = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that changes from step to step.

    ema: the moving average of the parameters, None where the recipe keeps none.
    step: updates done, int32.
    """

    params: Any
    opt_state: Any
    ema: Any
    step: Any


Step = Callable[[State, Batch, Array], tuple[State, Metrics]]
LossOf = Callable[[Any, Batch, Array], Array]


def build_model(
    recipe: Recipe, *, attention_backend: str | None = None
) -> VideoClassifier | VideoPretrainer:
    """The network that a recipe trains, with all that acts in training alone."""
    fields: dict[str, Any] = {
        "dtype": recipe.dtype,
        "attention_backend": attention_backend,
        "drop_path": recipe.drop_path,
        "remat": recipe.remat,
    }
    if recipe.task == "finetune":
        return VideoClassifier(recipe.model, head_dropout=recipe.head_dropout, **fields)
    hidden, decoded = mask_counts(recipe.masking, recipe.model)
    return VideoPretrainer(recipe.model, num_masked=hidden, num_decoded=decoded, **fields)


def init_state(
    recipe: Recipe,
    model: VideoClassifier | VideoPretrainer,
    optimizer: optax.GradientTransformation,
    *,
    params: Any = None,
) -> State:
    """The state before the first step; can be traced.

    `params` are float32, by default drawn with the recipe's seed (`initial.draw_params`).
    """
    if params is None:
        from videomae_jax.training.initial import draw_params

        params = draw_params(jax.random.key(recipe.seed), model)
    # An array of its own: a step that donates its state can't give one array away twice.
    average = jax.tree.map(jnp.array, params) if recipe.optimizer.ema else None
    return State(params, optimizer.init(params), average, jnp.zeros((), jnp.int32))


def make_step(recipe: Recipe, optimizer: optax.GradientTransformation, **options: Any) -> Step:
    """`make_pretrain_step` or `make_finetune_step`, as the recipe's task is."""
    make = make_pretrain_step if recipe.task == "pretrain" else make_finetune_step
    return make(recipe, optimizer, **options)


def make_pretrain_step(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Callable[[Any], Any],
    augment: Callable[..., Array] | None = None,
    model: VideoPretrainer | None = None,
) -> Step:
    """The update of masked pre-training.

    Masks are drawn for the whole batch, so that accumulation changes none of them. `augment` is by
    default `training.augment.augment`, `model` that of `build_model`.
    """
    network = build_model(recipe) if model is None else model
    clips_of = _clips(recipe, augment)
    config = recipe.model

    def prepare(batch: Batch, key: Array) -> Batch:
        # A mask for each clip that is made of a video.
        examples, repeats = len(batch["frames"]), recipe.input.repeats
        masks = draw_masks(key, recipe.masking, config, batch=examples * repeats)
        by_example = {name: mask.reshape(examples, repeats, -1) for name, mask in masks.items()}
        return {**batch, **by_example}

    def loss_of(params: Any, part: Batch, key: Array) -> Array:
        for_clips, for_dropping = jax.random.split(key)
        clips = clips_of(part, for_clips)
        mask = part["mask"].reshape(len(clips), -1)
        decoder_mask = part.get("decoder_mask")
        if decoder_mask is not None:
            decoder_mask = decoder_mask.reshape(len(clips), -1)
        rngs = {"dropout": for_dropping}
        predictions = network.apply({"params": params}, clips, mask, decoder_mask, rngs=rngs)
        return pretraining_loss(
            jnp.asarray(predictions), clips, mask, config, decoder_mask=decoder_mask
        )

    return _step(recipe, optimizer, schedule, prepare, loss_of)


def make_finetune_step(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    *,
    schedule: Callable[[Any], Any],
    class_weights: np.ndarray | None = None,
    augment: Callable[..., Array] | None = None,
    mix: Callable[..., tuple[Array, Array]] | None = None,
    model: VideoClassifier | None = None,
) -> Step:
    """The update of a classifier.

    Labels are int [b], or float [b, labels] for several labels and regression. Clips are mixed
    within a part of the batch, where it is accumulated. `augment` and `mix` are by default
    `training.augment.augment` and `training.mixing.mix`, `model` that of `build_model`.
    """
    network = build_model(recipe) if model is None else model
    clips_of, settings, config = _clips(recipe, augment), recipe.augment, recipe.model
    if mix is None and (settings.mixup or settings.cutmix):
        from videomae_jax.training.mixing import mix

    def loss_of(params: Any, part: Batch, key: Array) -> Array:
        for_clips, for_mixing, for_dropping = jax.random.split(key, 3)
        clips = clips_of(part, for_clips)
        targets = _targets(part["labels"], recipe)
        targets = jnp.repeat(targets, recipe.input.repeats, axis=0)
        if mix is not None:
            clips, targets = mix(for_mixing, clips, targets, settings=settings)
        logits = network.apply({"params": params}, clips, rngs={"dropout": for_dropping})
        return classification_loss(
            jnp.asarray(logits),
            targets,
            problem_type=config.problem_type,
            class_weights=class_weights,
        )

    return _step(recipe, optimizer, schedule, lambda batch, _: batch, loss_of)


def mask_counts(masking: Masking, config: VideoMAEConfig) -> tuple[int, int | None]:
    """How many tokens of a clip the encoder doesn't see, and how many the decoder predicts.

    The second is None where that is the same. Nothing is computed.
    """
    masks = jax.eval_shape(lambda: draw_masks(jax.random.key(0), masking, config, batch=1))
    if masking.kind == "random":
        return int(masking.ratio * config.num_tokens), None
    time, high, wide = config.grid
    hidden = time * int(masking.ratio * high * wide)
    return hidden, config.num_tokens // 2 if "decoder_mask" in masks else None


def draw_masks(
    key: Array, masking: Masking, config: VideoMAEConfig, *, batch: int
) -> dict[str, Array]:
    """Masks bool [B, L] of the batch: "mask", and "decoder_mask" for "dual".

    Raises:
        ValueError: for a ratio that hides nothing or everything, and as `running_cell_mask`.
    """
    if masking.kind == "random":
        return {"mask": random_mask(key, config, batch=batch, ratio=masking.ratio)}
    if masking.kind == "tube":
        return {"mask": tube_mask(key, config, batch=batch, ratio=masking.ratio)}
    for_encoder, for_decoder = jax.random.split(key)
    return {
        "mask": tube_mask(for_encoder, config, batch=batch, ratio=masking.ratio),
        "decoder_mask": running_cell_mask(for_decoder, config, batch=batch),
    }


def _clips(recipe: Recipe, augment: Callable[..., Array] | None) -> Callable[[Batch, Array], Array]:
    """(part of a batch, key) -> clips [b * repeats, T, H, W, C], a video's own side by side."""
    if augment is None:
        from videomae_jax.training.augment import augment
    repeats = recipe.input.repeats

    def clips_of(part: Batch, key: Array) -> Array:
        frames, sizes = (
            jnp.repeat(part[name], repeats, axis=0) if repeats > 1 else part[name]
            for name in ("frames", "sizes")
        )
        return augment(
            key,
            frames,
            sizes,
            settings=recipe.augment,
            model=recipe.model,
            mean=recipe.mean,
            std=recipe.std,
        )

    return clips_of


def _targets(labels: Array, recipe: Recipe) -> Array:
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return labels
    from videomae_jax.training.mixing import one_hot

    return one_hot(labels, recipe.model.num_labels, smoothing=recipe.augment.smoothing)


def _step(
    recipe: Recipe,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    prepare: Callable[[Batch, Array], Batch],
    loss_of: LossOf,
) -> Step:
    """The step around a loss: accumulation, the update, the average, and its figures."""
    parts, kept = recipe.optimizer.accumulate, recipe.optimizer.ema

    def step(state: State, batch: Batch, key: Array) -> tuple[State, Metrics]:
        # What is about the examples themselves ("index", "valid") is none of the step's business.
        batch = {name: batch[name] for name in ("frames", "sizes", "labels") if name in batch}
        for_batch, for_parts = jax.random.split(key)
        batch = prepare(batch, for_batch)
        loss, gradient = _value_and_gradient(loss_of, state.params, batch, for_parts, parts)
        norm = optax.tree.norm(gradient)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.ema
        if kept:
            average = jax.tree.map(lambda old, new: kept * old + (1 - kept) * new, average, params)
        done = State(params, opt_state, average, state.step + 1)
        # A step gone wrong changes nothing: the run can still be ended with the state before it.
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        metrics = {"loss": loss, "grad_norm": norm, "lr": jnp.float32(schedule(state.step))}
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), done, state), metrics

    return step


def _value_and_gradient(
    loss_of: LossOf, params: Any, batch: Batch, key: Array, parts: int
) -> tuple[Array, Any]:
    """The mean of the parts' losses, and its gradient; one part after the other in memory."""
    compute = jax.value_and_grad(loss_of)
    if parts == 1:
        return compute(params, batch, jax.random.fold_in(key, 0))
    size = len(batch["frames"])
    if size % parts:
        raise ValueError(f"a batch of {size} can't be computed in {parts} equal parts")
    # Every device has its share of each part: a part takes each `parts`-th example.
    cut = {
        name: value.reshape(size // parts, parts, *value.shape[1:]) for name, value in batch.items()
    }

    def add(total: Any, number: Array) -> tuple[Any, None]:
        part = {
            name: jax.lax.dynamic_index_in_dim(value, number, axis=1, keepdims=False)
            for name, value in cut.items()
        }
        found = compute(params, part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda old, new: old + new / parts, total, found), None

    nothing = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    (loss, gradient), _ = jax.lax.scan(add, nothing, jnp.arange(parts))
    return loss, gradient
