"""The activation functions that Hugging Face's `hidden_act` can name, elementwise and pure."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def gelu(x: Array) -> Array:
    """Exact GELU, x * Phi(x). Written with `erf`: measured 2-3 times faster on CPU than `erfc`."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def gelu_tanh(x: Array) -> Array:
    """GELU's tanh approximation (Hendrycks and Gimpel, 2016)."""
    return 0.5 * x * (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def gelu_clipped(x: Array) -> Array:
    """Exact GELU, clipped to [-10, 10]."""
    return jnp.clip(gelu(x), -10.0, 10.0)


def quick_gelu(x: Array) -> Array:
    """GELU's sigmoid approximation, x * sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)


def laplace(x: Array) -> Array:
    """Cumulative normal distribution with the mean and deviation of MEGA (arXiv 2209.10655)."""
    mean, deviation = 0.707107, 0.282095
    return 0.5 * (1.0 + jax.lax.erf((x - mean) / (deviation * math.sqrt(2.0))))


def linear(x: Array) -> Array:
    """The identity."""
    return x


def relu_squared(x: Array) -> Array:
    """relu(x) ** 2."""
    return jnp.square(jax.nn.relu(x))


def sqrt_softplus(x: Array) -> Array:
    """sqrt(log(1 + exp(x)))."""
    return jnp.sqrt(jax.nn.softplus(x))


# transformers' names (`ACT2FN`). Absent: "prelu" and "xielu", which hold learned parameters.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_10": gelu_clipped,
    "gelu_accurate": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_python_tanh": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "hardswish": jax.nn.hard_swish,
    "laplace": laplace,
    "leaky_relu": jax.nn.leaky_relu,
    "linear": linear,
    "mish": jax.nn.mish,
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "relu2": relu_squared,
    "relu6": jax.nn.relu6,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "sqrtsoftplus": sqrt_softplus,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
