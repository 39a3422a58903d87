import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from convert.translate import flatten
from tests.configs import TINY, random_params
from videomae_jax.config import VARIANTS
from videomae_jax.model import VideoClassifier, VideoPretrainer, abstract_params
from videomae_jax.training.optimizer import (
    decayed,
    layer_scales,
    learning_rates,
    make_optimizer,
)
from videomae_jax.training.settings import Optimizer

OPTIMIZER = Optimizer(base_lr=1e-3, epochs=4.0, warmup_epochs=1.0, min_lr=1e-5)
ALL_OPTIONS = dataclasses.replace(
    TINY,
    cos_attn=True,
    layer_scale_init_value=0.1,
    use_learnable_pos_emb=True,
    use_mean_pooling=False,
)


def rates(count: int, **changes) -> np.ndarray:
    optimizer = dataclasses.replace(OPTIMIZER, **changes)
    schedule = learning_rates(optimizer, batch_size=64, steps_per_epoch=5)
    return np.asarray(jax.vmap(schedule)(jnp.arange(count)))


# The schedule.


def test_warm_up_is_linear_with_both_ends_then_a_cosine_follows():
    """Of a quarter of the base rates: 64 videos a step, where the rates are for 256."""
    warmup = np.linspace(0, 2.5e-4, 5)
    falling = [
        2.5e-6 + 0.5 * (2.5e-4 - 2.5e-6) * (1 + math.cos(math.pi * i / 15)) for i in range(15)
    ]
    np.testing.assert_allclose(rates(20), [*warmup, *falling], rtol=1e-5, atol=1e-11)


def test_all_three_rates_scale_with_the_batch():
    values = rates(25, warmup_lr=4e-5)
    assert values[0] == pytest.approx(1e-5)
    assert values[4] == values[5] == pytest.approx(2.5e-4)
    np.testing.assert_allclose(values[20:], 2.5e-6, rtol=1e-5)


def test_without_a_warm_up_the_peak_comes_first():
    assert rates(1, warmup_epochs=0.0)[0] == pytest.approx(2.5e-4)


def test_one_step_of_warm_up_has_the_lower_rate():
    values = rates(2, warmup_epochs=0.2, warmup_lr=4e-5)
    np.testing.assert_allclose(values, [1e-5, 2.5e-4], rtol=1e-6)


def test_a_run_that_is_all_warm_up_is_refused():
    with pytest.raises(ValueError, match=r"warmup_epochs: 1\.0 x 5 steps are 5"):
        rates(1, epochs=1.0)


# What decays.


def test_matrices_decay_and_nothing_else():
    params = abstract_params(VideoPretrainer(ALL_OPTIONS)) | {
        "classifier": abstract_params(VideoClassifier(ALL_OPTIONS))["classifier"]
    }
    kept = {path for path, decays in flatten(decayed(params)).items() if decays}
    blocks = {"attention/qkv", "attention/proj", "mlp/fc1", "mlp/fc2"}
    assert kept == {
        *(f"encoder/layers/{name}/kernel" for name in blocks),
        *(f"decoder/layers/{name}/kernel" for name in blocks),
        "encoder/patch_embed/kernel",
        "encoder_to_decoder/kernel",
        "decoder/head/kernel",
        "classifier/kernel",
    }


# Layer decay.


def test_the_published_scales_of_twelve_layers():
    """.75 ** 13 for the embedding, .75 for the last block, 1 for the head."""
    config = dataclasses.replace(VARIANTS["small"], use_learnable_pos_emb=True)
    params = abstract_params(VideoClassifier(config))
    scales = flatten(layer_scales(params, config, layer_decay=0.75))
    np.testing.assert_allclose(scales["encoder/patch_embed/kernel"], 0.02376, rtol=2e-4)
    assert scales["encoder/pos_embed"] == scales["encoder/patch_embed/bias"]
    by_layer = [0.75 ** (12 - k) for k in range(12)]
    for path, scale in scales.items():
        if "/layers/" in path:
            np.testing.assert_allclose(scale.ravel(), by_layer, rtol=1e-6)
            assert np.broadcast_shapes(scale.shape, flatten(params)[path].shape)
    assert scales["encoder/layers/norm_1/scale"].shape == (12, 1)
    np.testing.assert_allclose(
        scales["encoder/layers/mlp/fc1/kernel"].ravel()[0], 0.03168, rtol=2e-4
    )
    for path in ("fc_norm/scale", "fc_norm/bias", "classifier/kernel", "classifier/bias"):
        assert scales[path] == 1.0


def test_norms_behind_the_blocks_and_the_decoder_are_not_scaled():
    params = abstract_params(VideoPretrainer(ALL_OPTIONS))
    scales = flatten(layer_scales(params, ALL_OPTIONS, layer_decay=0.5))
    for path, scale in scales.items():
        if "encoder/layers" not in path and "patch_embed" not in path and "pos_emb" not in path:
            assert scale == 1.0, path
    assert scales["encoder/norm/scale"] == 1.0
    np.testing.assert_allclose(scales["encoder/layers/scale_1/gamma"].ravel(), [0.125, 0.25, 0.5])


@pytest.mark.parametrize("layer_decay", [0.0, 1.5, -1.0])
def test_a_layer_decay_that_is_none_is_refused(layer_decay):
    with pytest.raises(ValueError, match="layer_decay must be in"):
        layer_scales({}, TINY, layer_decay=layer_decay)


# The update.


def updates(optimizer: Optimizer, gradients_of, *, steps: int = 3):
    """(parameters before, after `steps` with a rate of .01)."""
    params = random_params(abstract_params(VideoClassifier(TINY)))
    transform = make_optimizer(optimizer, schedule=lambda _: 0.01, model_config=TINY, params=params)
    state, now = transform.init(params), params
    for step in range(steps):
        change, state = transform.update(gradients_of(step, params), state, now)
        now = optax.apply_updates(now, change)
    return flatten(params), flatten(now)


def random_gradients(step, params):
    return random_params(params, seed=step + 1)


@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_three_steps_are_adamw_by_its_definition(layer_decay):
    optimizer = dataclasses.replace(
        OPTIMIZER, betas=(0.8, 0.95), weight_decay=0.1, layer_decay=layer_decay, eps=1e-4
    )
    before, after = updates(optimizer, random_gradients)
    params = abstract_params(VideoClassifier(TINY))
    scales = flatten(layer_scales(params, TINY, layer_decay=layer_decay))
    decays = flatten(decayed(params))
    gradients = [flatten(random_gradients(step, params)) for step in range(3)]
    for path, value in before.items():
        value, first, second = np.asarray(value, np.float64), 0.0, 0.0
        for step in range(3):
            gradient = np.asarray(gradients[step][path], np.float64)
            first = 0.8 * first + 0.2 * gradient
            second = 0.95 * second + 0.05 * gradient**2
            root = np.sqrt(second / (1 - 0.95 ** (step + 1))) + 1e-4
            rate = 0.01 * scales[path]
            value = value - rate * 0.1 * decays[path] * value
            value = value - rate * first / (1 - 0.8 ** (step + 1)) / root
        np.testing.assert_allclose(after[path], value, rtol=0, atol=2e-6, err_msg=path)


def test_the_gradient_is_clipped_as_a_whole():
    clipped = dataclasses.replace(OPTIMIZER, clip_norm=2.0, eps=1.0)

    def shrunk(step, params):
        gradients = random_gradients(step, params)
        norm = float(optax.tree.norm(gradients))
        assert norm > 2.0
        return jax.tree.map(lambda gradient: gradient * np.float32(2.0 / norm), gradients)

    free = dataclasses.replace(OPTIMIZER, eps=1.0)
    _, wanted = updates(free, shrunk)
    _, given = updates(clipped, random_gradients)
    _, unclipped = updates(free, random_gradients)
    for path in wanted:
        np.testing.assert_allclose(given[path], wanted[path], rtol=0, atol=1e-6, err_msg=path)
    assert np.abs(unclipped["classifier/kernel"] - wanted["classifier/kernel"]).max() > 1e-3


def test_a_gradient_of_less_than_the_norm_is_left_alone():
    def small(step, params):
        return jax.tree.map(lambda gradient: gradient * 1e-3, random_gradients(step, params))

    free = dataclasses.replace(OPTIMIZER, eps=1.0)
    _, wanted = updates(free, small)
    _, given = updates(dataclasses.replace(free, clip_norm=2.0), small)
    for path in wanted:
        np.testing.assert_array_equal(given[path], wanted[path], err_msg=path)
