"""What acts in training alone: drop path, dropout before the head, layers computed again."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert.translate import flatten
from tests.configs import TINY, random_clips, random_params
from videomae_jax.encoder import run_layers
from videomae_jax.layers import DropPath
from videomae_jax.losses import pretraining_loss
from videomae_jax.masking import tube_mask
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer, abstract_params

CLIPS = random_clips(TINY)
KEY = jax.random.key(3)


def dropped(branch, rate, seed=0):
    return DropPath().apply({}, branch, rate, rngs={"dropout": jax.random.key(seed)})


def test_whole_samples_are_left_out_at_the_rate_and_the_mean_stays():
    branch = jnp.asarray(np.random.default_rng(0).standard_normal((4000, 3, 2)), jnp.float32)
    given = np.asarray(dropped(branch, 0.3))
    left_out = (given == 0).all(axis=(1, 2))
    # Three deviations of a share of 4000 are .022.
    assert left_out.mean() == pytest.approx(0.3, abs=0.022)
    np.testing.assert_allclose(given[~left_out], branch[~left_out] / 0.7, rtol=1e-6)


def test_no_rate_leaves_nothing_out():
    branch = jnp.ones((64, 1, 2))
    np.testing.assert_array_equal(dropped(branch, 0.0), branch)
    np.testing.assert_array_equal(DropPath().apply({}, branch, 0.9), branch)


def test_the_dtype_of_a_branch_stays():
    assert dropped(jnp.ones((2, 3, 4), jnp.bfloat16), jnp.float32(0.5)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("drop_path", "wanted"), [(0.3, [0.0, 0.15, 0.3]), (0.0, None)], ids=["some", "none"]
)
def test_the_rate_grows_linearly_over_depth(drop_path, wanted):
    class Rates(VideoEncoder):
        def __call__(self, x):
            def keep(block, x, rate):
                return block(x), rate

            return run_layers(self.layers, 3, x, keep, unroll=1, drop_path=drop_path)[1]

    params = random_params(abstract_params(VideoEncoder(TINY)))
    rates = Rates(TINY).apply({"params": params}, jnp.ones((1, 45, 24)))
    if wanted is None:
        assert rates is None
    else:
        np.testing.assert_allclose(rates, wanted, rtol=1e-6)


@pytest.mark.parametrize("field", ["drop_path", "head_dropout"])
def test_it_acts_when_a_key_is_given_and_only_then(field):
    plain, model = VideoClassifier(TINY), VideoClassifier(TINY, **{field: 0.5})
    assert flatten(abstract_params(model)).keys() == flatten(abstract_params(plain)).keys()
    weights = {"params": random_params(abstract_params(plain))}
    still = plain.apply(weights, CLIPS)
    np.testing.assert_array_equal(model.apply(weights, CLIPS), still)
    given = [model.apply(weights, CLIPS, rngs={"dropout": jax.random.key(k)}) for k in (4, 4, 5)]
    np.testing.assert_array_equal(given[0], given[1])
    assert not np.array_equal(given[0], given[2])
    assert not np.array_equal(given[0], still)
    # A key alone drops nothing.
    np.testing.assert_array_equal(plain.apply(weights, CLIPS, rngs={"dropout": KEY}), still)


def test_a_layer_that_is_left_out_passes_its_input_on():
    """Of two layers the second is always left out: what remains is the first."""
    config = dataclasses.replace(TINY, num_hidden_layers=2)
    # Not 1, by which what is kept would be divided.
    model = VideoEncoder(config, drop_path=1.0 - 2.0**-24)
    weights = {"params": random_params(abstract_params(model))}
    given = model.apply(weights, CLIPS, rngs={"dropout": KEY})
    first = model.apply(weights, CLIPS, method="hidden_states")[1]
    np.testing.assert_allclose(given, first, rtol=0, atol=2e-6)


def classifier_loss(model):
    return lambda params: jnp.square(
        model.apply({"params": params}, CLIPS, rngs={"dropout": KEY})
    ).mean()


def pretrainer_loss(model):
    mask = tube_mask(jax.random.key(1), TINY, batch=2, ratio=0.6)

    def loss(params):
        predictions = model.apply({"params": params}, CLIPS, mask, rngs={"dropout": KEY})
        return pretraining_loss(predictions, CLIPS, mask, TINY)

    return loss


@pytest.mark.parametrize(
    ("model", "loss_of"),
    [
        (VideoClassifier(TINY, drop_path=0.5, head_dropout=0.5), classifier_loss),
        (VideoPretrainer(TINY, num_masked=27, drop_path=0.5), pretrainer_loss),
    ],
    ids=["classifier", "pretrainer"],
)
def test_layers_computed_again_have_the_same_gradients(model, loss_of):
    """And drop the same again."""
    params = random_params(abstract_params(model))
    again = model.clone(remat=True)
    assert flatten(abstract_params(again)).keys() == flatten(params).keys()
    loss, gradients = jax.jit(jax.value_and_grad(loss_of(model)))(params)
    other, others = jax.jit(jax.value_and_grad(loss_of(again)))(params)
    assert float(other) == pytest.approx(float(loss), rel=1e-6)
    gradients, others = flatten(gradients), flatten(others)
    for path, gradient in gradients.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(others[path], gradient, rtol=0, atol=1e-5 * scale, err_msg=path)
    assert "remat" in str(jax.make_jaxpr(jax.grad(loss_of(again)))(params))
