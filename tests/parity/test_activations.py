"""Every name of `hidden_act` against transformers' ACT2FN: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from videomae_jax.activations import ACTIVATIONS

WITH_PARAMETERS = {"prelu", "xielu"}

# Dense where they bend, sparse beyond; an even count leaves out 0, where relu and its kin have a
# kink. The others' kinks, 3 and 6, fall between the points, too.
POINTS = np.concatenate([np.linspace(-9.5, 9.5, 4002), [-80, -31, 31, 80]]).astype(np.float32)


def test_all_of_transformers_names_but_those_with_parameters():
    assert set(ACTIVATIONS) == set(ACT2CLS) - WITH_PARAMETERS
    for name in WITH_PARAMETERS:
        assert list(ACT2FN[name].parameters())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name):
    points = np.append(POINTS, np.float32([-1e4, -0.0, 0.0, 1e4]))
    wanted = ACT2FN[name](torch.from_numpy(points)).numpy()
    given = jax.jit(ACTIVATIONS[name])(points)
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients(name):
    points = torch.from_numpy(POINTS).requires_grad_()
    ACT2FN[name](points).sum().backward()
    given = jax.jit(jax.vmap(jax.grad(ACTIVATIONS[name])))(POINTS)
    # Where tanh is nearly -1, its last digit times x is 4e-6.
    np.testing.assert_allclose(given, points.grad.numpy(), rtol=2e-6, atol=5e-6)


def test_names_that_differ_are_told_apart():
    """The tolerance above is finer than the difference between any two functions."""
    values = {
        name: np.asarray(function(jnp.asarray(POINTS))) for name, function in ACTIVATIONS.items()
    }
    same = {
        frozenset((one, other))
        for one in values
        for other in values
        if one != other and np.allclose(values[one], values[other], rtol=1e-5, atol=1e-5)
    }
    tanh = [name for name in ACTIVATIONS if ACTIVATIONS[name] is ACTIVATIONS["gelu_new"]]
    assert same == {
        *(frozenset((one, other)) for one in tanh for other in tanh if one != other),
        frozenset(("gelu", "gelu_python")),
        frozenset(("silu", "swish")),
    }
