"""In which precision: one policy for the whole network.

Parameters are float32 or bfloat16, in whatever a tree holds. Activations and both sides of every
product are of the module's `dtype`, float32 or bfloat16. Sums inside products, biases, LayerNorm,
softmax and logits are float32, whatever that is.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32

FLOAT32 = np.dtype(np.float32)
COMPUTE_DTYPES = ("float32", "bfloat16")


def compute_dtype(dtype: Any) -> np.dtype:
    """The dtype that a network computes in, from a name or a type.

    Raises:
        ValueError: for another than `COMPUTE_DTYPES`.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in COMPUTE_DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(COMPUTE_DTYPES)}, got {dtype!r}")
    return found


def product(
    x: Float[Array, "*rows D"], kernel: Float[Array | np.ndarray, "D F"], dtype: np.dtype
) -> Float32[Array, "*rows F"]:
    """x @ kernel, both rounded to `dtype`, summed in float32 and left so."""
    return _product(jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    # On CPU a product of bfloat16 whose result is bfloat16 is computed in float32, at half the
    # speed; so is one of bfloat16 and float32, as the gradient of the result is: it is rounded.
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _product_backward(kept: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, kernel = kept
    gradient = gradient.astype(x.dtype)
    if x.shape[-1] > gradient.shape[-1]:
        # XLA's CPU backend turns the left side round, and computes again whatever that was made by:
        # so that is the narrower one. The barrier keeps it from choosing the other.
        of_kernel = jax.lax.optimization_barrier(_over_rows(gradient, x)).T
    else:
        of_kernel = _over_rows(x, gradient)
    return _product(gradient, kernel.T).astype(x.dtype), of_kernel.astype(kernel.dtype)


def _over_rows(left: Array, right: Array) -> Array:
    """left' @ right, with all rows [..., D] of each as one axis."""
    rows = tuple(range(left.ndim - 1))
    axes = ((rows, rows), ((), ()))
    return jax.lax.dot_general(left, right, axes, preferred_element_type=jnp.float32)


_product.defvjp(_product_forward, _product_backward)
