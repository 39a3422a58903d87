"""Loss, gradients and five steps of AdamW against plain torch, for both tasks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from convert.layouts import HUGGING_FACE
from convert.translate import flatten, translate
from tests.parity import torch_training
from tests.parity.reference import TINY, build, config_of, relative_l2, tensors_of, translated
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params
from videomae_jax.training.optimizer import learning_rates, make_optimizer
from videomae_jax.training.settings import Augment, Input, Masking, Optimizer, Recipe
from videomae_jax.training.step import build_model, draw_masks, init_state, make_step

BATCH, STEPS_PER_EPOCH, STEPS = 6, 3, 5
# Warm-up and cosine within five steps, at rates that move the weights by a tenth of their size.
OPTIMIZER = Optimizer(
    base_lr=0.01 * 256 / BATCH,
    warmup_lr=0.002 * 256 / BATCH,
    min_lr=0.001 * 256 / BATCH,
    epochs=2.0,
    warmup_epochs=1.0,
    weight_decay=0.05,
)
FINETUNE = dataclasses.replace(OPTIMIZER, layer_decay=0.75, clip_norm=1.0)
PRETRAIN = dataclasses.replace(OPTIMIZER, betas=(0.9, 0.95))
# Relative distances. What is right measures up to 2e-6, 4e-6, 8e-8, 8e-6, 6e-7 and 4e-5; the least
# mistakes tried, 1e-4 and more in one of them: see the test that holds that end.
LIMITS = {
    "loss": 5e-6,
    "norm of the gradient": 5e-5,
    "rate": 1e-6,
    "moving gradient": 5e-5,
    "parameters": 1e-5,
    "change": 2e-4,
}


def normalise(key, frames, sizes, *, settings, model, mean, std):
    """Augmentation that changes nothing."""
    return (frames / 255 - jnp.array(mean)) / jnp.array(std)


def recipe_of(task: str, config, optimizer: Optimizer) -> Recipe:
    return Recipe(
        task=task,
        model=config,
        input=Input(batch_size=BATCH),
        optimizer=optimizer,
        augment=Augment(smoothing=0.1),
        masking=Masking(ratio=0.7),
    )


def batches(config):
    """Another batch for each step."""
    random = np.random.default_rng(3)
    for _ in range(STEPS):
        yield {
            "frames": random.integers(0, 256, (BATCH, *config.clip_shape), np.uint8),
            "sizes": np.full((BATCH, 2), 20, np.int32),
            "labels": random.integers(0, config.num_labels, BATCH).astype(np.int32),
        }


def key_of(step: int):
    return jax.random.fold_in(jax.random.key(0), step)


def our_steps(recipe: Recipe, params):
    """(state, metrics) after each step."""
    schedule = learning_rates(recipe.optimizer, batch_size=BATCH, steps_per_epoch=STEPS_PER_EPOCH)
    optimizer = make_optimizer(
        recipe.optimizer, schedule=schedule, model_config=recipe.model, params=params
    )
    state = init_state(recipe, build_model(recipe), optimizer, params=params)
    step = jax.jit(make_step(recipe, optimizer, schedule=schedule, augment=normalise))
    for number, batch in enumerate(batches(recipe.model)):
        state, metrics = step(state, batch, key_of(number))
        yield state, metrics


def loss_of(task: str, reference, recipe: Recipe):
    """torch's loss at a step, of the batch and the masks that ours has."""
    seen = list(batches(recipe.model))

    def classify(step: int) -> torch.Tensor:
        frames, labels = seen[step]["frames"], seen[step]["labels"]
        return torch_training.smoothed_cross_entropy(reference, frames, labels, smoothing=0.1)

    def reconstruct(step: int) -> torch.Tensor:
        key, _ = jax.random.split(key_of(step))
        masks = draw_masks(key, recipe.masking, recipe.model, batch=BATCH)
        # Of its own: torch warns about memory that it may not write to.
        mask = np.array(masks["mask"])
        return torch_training.hidden_pixel_error(reference, seen[step]["frames"], mask)

    return classify if task == "finetune" else reconstruct


def errors_of(task: str, optimizer: Optimizer, ours: Optimizer) -> list[dict[str, float]]:
    """After each step: the distances between `ours` and torch, which runs `optimizer`."""
    reference = build(VideoClassifier if task == "finetune" else VideoPretrainer, **TINY)
    recipe = recipe_of(task, config_of(reference), ours)
    like = build_model(recipe)
    start = translated(reference, like)
    rates = torch_training.rates(optimizer, batch=BATCH, steps_per_epoch=STEPS_PER_EPOCH)[:STEPS]
    theirs = torch_training.train(
        reference, optimizer, loss_of(task, reference, recipe), rates=rates
    )
    found = []
    for (state, metrics), (loss, norm, adamw) in zip(our_steps(recipe, start), theirs, strict=True):
        moments = {
            name: adamw.state[parameter]["exp_avg"]
            for name, parameter in reference.named_parameters()
        }
        wanted = translated(reference, like)
        found.append(
            {
                "loss": relative_l2(metrics["loss"], loss),
                "norm of the gradient": relative_l2(metrics["grad_norm"], norm),
                "rate": relative_l2(metrics["lr"], rates[len(found)]),
                "moving gradient": distance(
                    optax.tree.get(state.opt_state, "mu"),
                    translate(tensors_of(moments), HUGGING_FACE, abstract_params(like)),
                ),
                "parameters": distance(state.params, wanted),
                "change": distance(difference(state.params, start), difference(wanted, start)),
            }
        )
    return found


def difference(after, before):
    return jax.tree.map(lambda one, other: np.asarray(one) - np.asarray(other), after, before)


def distance(given, wanted) -> float:
    """Relative, of all leaves as one vector."""
    given, wanted = flatten(given), flatten(wanted)
    assert set(given) == set(wanted)
    return relative_l2(
        *(np.concatenate([tree[name].ravel() for name in wanted]) for tree in (given, wanted))
    )


@pytest.mark.parametrize(("task", "optimizer"), [("finetune", FINETUNE), ("pretrain", PRETRAIN)])
def test_five_steps_follow_torch(task, optimizer):
    for step, errors in enumerate(errors_of(task, optimizer, optimizer), start=1):
        print(
            f"{task} {step}: " + ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
        )
        assert all(error <= LIMITS[name] for name, error in errors.items()), (step, errors)


def test_a_little_more_weight_decay_is_seen():
    more = dataclasses.replace(FINETUNE, weight_decay=0.06)
    last = errors_of("finetune", FINETUNE, more)[-1]
    assert last["parameters"] > 10 * LIMITS["parameters"]
    assert last["change"] > 10 * LIMITS["change"]
