import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convert.translate import flatten
from videomae_jax.config import VideoMAEConfig
from videomae_jax.masking import count_masked
from videomae_jax.model import abstract_params
from videomae_jax.training.optimizer import make_optimizer
from videomae_jax.training.recipes import RECIPES
from videomae_jax.training.settings import Augment, Input, Masking, Optimizer, Recipe
from videomae_jax.training.step import (
    State,
    build_model,
    draw_masks,
    init_state,
    make_step,
    mask_counts,
)

MODEL = VideoMAEConfig(
    image_size=(16, 24),
    patch_size=(4, 4),
    num_frames=4,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    decoder_hidden_size=12,
    decoder_num_attention_heads=3,
    decoder_num_hidden_layers=1,
    decoder_intermediate_size=20,
    num_labels=5,
)
# With an eps of 1 an update is nearly in proportion to the gradient, as rounding is.
OPTIMIZER = Optimizer(base_lr=1.0, epochs=1.0, warmup_epochs=0.0, eps=1.0)
FINETUNE = Recipe(
    task="finetune",
    model=MODEL,
    input=Input(batch_size=8),
    optimizer=OPTIMIZER,
    augment=Augment(smoothing=0.1),
)
PRETRAIN = dataclasses.replace(FINETUNE, task="pretrain", masking=Masking(ratio=0.6))
KEY = jax.random.key(5)


def schedule(step):
    return 0.5 / (1.0 + step)


def still(key, frames, sizes, *, settings, model, mean, std):
    """Augmentation that changes nothing, but that videos of no height are no numbers."""
    gone = jnp.where(sizes[:, :1] == 0, jnp.nan, 0.0)[:, :, None, None, None]
    return (frames / 255 - jnp.array(mean)) / jnp.array(std) + gone


def batch_of(size: int = 8, *, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "frames": random.integers(0, 256, (size, *MODEL.clip_shape), np.uint8),
        "sizes": np.full((size, 2), 20, np.int32),
        "labels": random.integers(0, MODEL.num_labels, size).astype(np.int32),
        "index": np.arange(size, dtype=np.int32),
    }


def optimizer_of(recipe: Recipe) -> optax.GradientTransformation:
    params = abstract_params(build_model(recipe))
    return make_optimizer(
        recipe.optimizer, schedule=schedule, model_config=recipe.model, params=params
    )


@functools.cache
def drawn(task: str):
    recipe = FINETUNE if task == "finetune" else PRETRAIN
    return init_state(recipe, build_model(recipe), optimizer_of(recipe)).params


def start_of(recipe: Recipe) -> State:
    params = drawn(recipe.task)
    return init_state(recipe, build_model(recipe), optimizer_of(recipe), params=params)


@functools.cache
def compiled(recipe: Recipe):
    step = make_step(recipe, optimizer_of(recipe), schedule=schedule, augment=still)
    return jax.jit(step)


def changed(recipe: Recipe, *, model: dict | None = None, **optimizer) -> Recipe:
    return dataclasses.replace(
        recipe,
        optimizer=dataclasses.replace(recipe.optimizer, **optimizer),
        model=dataclasses.replace(recipe.model, **(model or {})),
    )


def assert_near(given, wanted, tolerance: float) -> None:
    given, wanted = flatten(given), flatten(wanted)
    assert set(given) == set(wanted)
    for path, value in wanted.items():
        np.testing.assert_allclose(given[path], value, rtol=0, atol=tolerance, err_msg=path)


def moved(before: State, after: State) -> float:
    pairs = zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
    return max(float(np.abs(one - other).max()) for one, other in pairs)


@pytest.mark.parametrize("recipe", [FINETUNE, PRETRAIN], ids=["finetune", "pretrain"])
def test_parts_make_the_same_update_as_the_whole(recipe):
    start = start_of(recipe)
    whole, figures = compiled(recipe)(start, batch_of(), KEY)
    parts, others = compiled(changed(recipe, accumulate=4))(start, batch_of(), KEY)
    assert moved(start, whole) > 1e-3
    assert_near(parts.params, whole.params, 1e-6)
    assert others["loss"] == pytest.approx(float(figures["loss"]), rel=1e-6)
    assert others["grad_norm"] == pytest.approx(float(figures["grad_norm"]), rel=1e-5)


def test_a_batch_that_can_not_be_parted_is_refused():
    recipe = changed(FINETUNE, accumulate=3)
    with pytest.raises(ValueError, match="a batch of 8 can't be computed in 3 equal parts"):
        jax.eval_shape(compiled(recipe), start_of(recipe), batch_of(), KEY)


def test_the_figures_of_a_step():
    start = start_of(FINETUNE)
    state, figures = compiled(FINETUNE)(start, batch_of(), KEY)
    assert set(figures) == {"loss", "grad_norm", "lr"}
    assert int(state.step) == 1
    # A head of nearly 0 says every class alike.
    assert float(figures["loss"]) == pytest.approx(np.log(5), abs=1e-2)
    assert float(figures["lr"]) == 0.5
    _, figures = compiled(FINETUNE)(state, batch_of(seed=1), KEY)
    assert float(figures["lr"]) == 0.25


def test_the_average_follows_by_its_formula():
    recipe = changed(FINETUNE, ema=0.75)
    start = start_of(recipe)
    average = start.params
    state = start
    for seed in range(2):
        state, _ = compiled(recipe)(state, batch_of(seed=seed), KEY)
        average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, state.params)
    assert_near(state.ema, average, 1e-6)
    assert start_of(FINETUNE).ema is None
    # Arrays of their own, which a step may take back one by one.
    assert jax.tree.leaves(start.ema)[0] is not jax.tree.leaves(start.params)[0]


def test_a_loss_that_is_no_number_changes_nothing():
    recipe = changed(FINETUNE, ema=0.75)
    state, _ = compiled(recipe)(start_of(recipe), batch_of(), KEY)
    bad = batch_of()
    bad["sizes"][3] = 0
    after, figures = compiled(recipe)(state, bad, KEY)
    assert np.isnan(figures["loss"])
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new, old)


def test_the_key_decides_what_is_hidden():
    start = start_of(PRETRAIN)
    losses = [
        float(compiled(PRETRAIN)(start, batch_of(), jax.random.key(seed))[1]["loss"])
        for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("recipe", [FINETUNE, PRETRAIN], ids=["finetune", "pretrain"])
def test_a_video_has_its_clips_side_by_side(recipe):
    """Twice the same clip weighs as much as once: labels and masks go with their clips."""
    seen = []

    def record(key, frames, sizes, **options):
        seen.append((frames.shape[0], sizes.shape))
        return still(key, frames, sizes, **options)

    twice = dataclasses.replace(recipe, input=Input(batch_size=4, repeats=2))
    step = make_step(twice, optimizer_of(twice), schedule=schedule, augment=record)
    state, figures = jax.jit(step)(start_of(twice), batch_of(4), KEY)
    assert seen == [(8, (8, 2))]
    repeated = {name: np.repeat(value, 2, axis=0) for name, value in batch_of(4).items()}
    wanted, others = compiled(recipe)(start_of(recipe), repeated, KEY)
    assert float(figures["loss"]) == pytest.approx(float(others["loss"]), rel=1e-6)
    assert_near(state.params, wanted.params, 1e-6)


def test_mixing_is_asked_with_clips_and_soft_targets():
    recipe = dataclasses.replace(FINETUNE, augment=Augment(smoothing=0.1, mixup=0.8))
    seen = {}

    def mix(key, clips, targets, *, settings):
        seen.update(clips=clips.shape, settings=settings)
        return clips, targets[::-1]

    step = make_step(recipe, optimizer_of(recipe), schedule=schedule, augment=still, mix=mix)
    start = start_of(recipe)
    state, _ = jax.jit(step)(start, batch_of(), KEY)
    assert seen == {"clips": (8, *MODEL.clip_shape), "settings": recipe.augment}
    other = batch_of() | {"labels": batch_of()["labels"][::-1]}
    wanted, _ = compiled(FINETUNE)(start, other, KEY)
    assert_near(state.params, wanted.params, 1e-6)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_of_several_numbers_are_the_targets(problem):
    recipe = changed(FINETUNE, model={"problem_type": problem})
    targets = np.random.default_rng(0).random((8, 5), np.float32)
    _, figures = compiled(recipe)(start_of(recipe), batch_of() | {"labels": targets}, KEY)
    # Of logits near 0.
    wanted = np.log(2) if problem != "regression" else np.mean(targets**2)
    assert float(figures["loss"]) == pytest.approx(wanted, abs=1e-2)


@pytest.mark.parametrize("task", ["finetune", "pretrain"])
def test_in_bfloat16_the_state_stays_float32(task):
    recipe = FINETUNE if task == "finetune" else PRETRAIN
    recipe = dataclasses.replace(changed(recipe, ema=0.9), dtype="bfloat16")
    start = start_of(recipe)
    step = make_step(recipe, optimizer_of(recipe), schedule=schedule, augment=still)
    state, figures = jax.eval_shape(step, start, batch_of(), KEY)
    floating = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype != jnp.int32]
    assert {leaf.dtype.name for leaf in floating} == {"float32"}
    assert {leaf.dtype.name for leaf in figures.values()} == {"float32"}
    assert jax.tree.structure(state) == jax.tree.structure(start)


@pytest.mark.parametrize("kind", ["tube", "random", "dual"])
@pytest.mark.parametrize("ratio", [0.6, 0.9])
def test_masks_hide_as_many_as_the_network_expects(kind, ratio):
    masking = Masking(kind=kind, ratio=ratio)
    masks = draw_masks(KEY, masking, MODEL, batch=3)
    hidden, decoded = mask_counts(masking, MODEL)
    assert count_masked(masks["mask"]) == hidden
    assert ("decoder_mask" in masks) == (kind == "dual") == (decoded is not None)
    if decoded is not None:
        assert MODEL.num_tokens - count_masked(masks["decoder_mask"]) == decoded
    network = build_model(dataclasses.replace(PRETRAIN, masking=masking))
    assert (network.num_masked, network.num_decoded) == (hidden, decoded)


def test_a_ratio_that_hides_nothing_is_refused():
    with pytest.raises(ValueError, match=r"ratio 0\.01 hides 0 of 24 places"):
        build_model(dataclasses.replace(PRETRAIN, masking=Masking(ratio=0.01)))


def test_a_dual_step_has_a_number():
    recipe = dataclasses.replace(PRETRAIN, masking=Masking(kind="dual", ratio=0.6))
    state, figures = compiled(recipe)(start_of(recipe), batch_of(), KEY)
    assert np.isfinite(figures["loss"])
    assert moved(start_of(recipe), state) > 1e-4


@pytest.mark.parametrize("name", ["small-k400-finetune", "base-ucf101-pretrain"])
def test_the_step_of_a_published_run_can_be_traced(name):
    """With its own augmentation, on two videos."""
    recipe = RECIPES[name]
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_labels=400))
    optimizer = make_optimizer(
        recipe.optimizer,
        schedule=schedule,
        model_config=recipe.model,
        params=abstract_params(build_model(recipe)),
    )
    start = jax.eval_shape(lambda: init_state(recipe, build_model(recipe), optimizer))
    batch = {
        "frames": jax.ShapeDtypeStruct((2, 16, 256, 256, 3), jnp.uint8),
        "sizes": jax.ShapeDtypeStruct((2, 2), jnp.int32),
        "labels": jax.ShapeDtypeStruct((2,), jnp.int32),
    }
    state, figures = jax.eval_shape(
        make_step(recipe, optimizer, schedule=schedule), start, batch, KEY
    )
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    assert figures["loss"].shape == ()
