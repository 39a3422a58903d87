"""Programs over a sharded batch, run in a process of its own that has four CPU devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.four_devices

Prints JSON: for each case, whether its result was right, how it is sharded, and the collectives in
its compiled program.
"""

import contextlib
import json
import re
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomae_jax.kernels.batch_parallel import batch_parallel

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")


def product(left, right):
    """A loop over the batch, as hand-written kernels are to the partitioner."""
    return jax.lax.map(lambda pair: pair[0] @ pair[1], (left, right))


@jax.custom_vjp
def product_with_gradient(left, right):
    return batch_parallel(product)(left, right)


def forward(left, right):
    return product_with_gradient(left, right), (left, right)


def backward(kept, gradient):
    left, right = kept
    of_left = batch_parallel(product)(gradient, right.swapaxes(1, 2))
    return of_left, batch_parallel(product)(left.swapaxes(1, 2), gradient)


product_with_gradient.defvjp(forward, backward)


def repeated(left, right):
    """The function in a scan, as in a stack of layers."""

    def step(carry, _):
        return jnp.tanh(carry + batch_parallel(product)(carry, right)), None

    return jax.lax.scan(step, left, None, length=3)[0]


def repeated_plainly(left, right):
    for _ in range(3):
        left = jnp.tanh(left + left @ right)
    return left


def as_on_tpu(*arrays, tpu, default, choose=jax.lax.platform_dependent):
    """What programs for a TPU do, on CPU."""
    return choose(*arrays, cpu=tpu, default=default)


@contextlib.contextmanager
def gspmd():
    """The partitioner that Shardy replaced."""
    jax.config.update("jax_use_shardy_partitioner", False)
    yield
    jax.config.update("jax_use_shardy_partitioner", True)


def sum_of_squares(function):
    return lambda left, right: jnp.sum(function(left, right) ** 2)


def cases(of_mesh):
    """{name: (function, reference, sharding of left, sharding of right, leading axes)}."""
    line, square = of_mesh
    clips = NamedSharding(line, PartitionSpec("data"))
    mapped = NamedSharding(line, PartitionSpec(None, "data"))
    parallel = batch_parallel(product)
    gradient = jax.grad(sum_of_squares(product_with_gradient), argnums=1)
    plain_gradient = jax.grad(sum_of_squares(jnp.matmul), argnums=1)
    return {
        "batch": (parallel, jnp.matmul, clips, clips, (8,)),
        "only left": (parallel, jnp.matmul, clips, NamedSharding(line, PartitionSpec()), (8,)),
        "two mesh axes": (
            parallel,
            jnp.matmul,
            *2 * (NamedSharding(square, PartitionSpec(("data", "model"))),),
            (8,),
        ),
        "columns": (
            parallel,
            jnp.matmul,
            *2 * (NamedSharding(square, PartitionSpec("data", None, "model")),),
            (8,),
        ),
        "scan": (repeated, repeated_plainly, clips, clips, (8,)),
        "gradient": (gradient, plain_gradient, clips, clips, (8,)),
        "vmap, batch sharded": (jax.vmap(parallel), jnp.matmul, mapped, mapped, (8, 8)),
        "vmap, mapped axis sharded": (jax.vmap(parallel), jnp.matmul, clips, clips, (8, 3)),
        "vmap of the gradient": (
            jax.vmap(gradient),
            jax.vmap(plain_gradient),
            mapped,
            mapped,
            (8, 8),
        ),
    }


def run(function, reference, left_place, right_place, leading: tuple[int, ...]) -> dict:
    generator = np.random.default_rng(0)
    shape = (*leading, 4, 4)
    left, right = generator.standard_normal((2, *shape), dtype=np.float32)
    places = jax.device_put(left, left_place), jax.device_put(right, right_place)
    compiled = jax.jit(function).lower(*places).compile()
    result = compiled(*places)
    return {
        "error": float(np.abs(result - reference(left, right)).max()),
        "spec": [str(axes) for axes in result.sharding.spec if axes],
        "collectives": COLLECTIVE.findall(compiled.as_text()),
    }


def main() -> int:
    devices = np.array(jax.devices())
    meshes = Mesh(devices, ("data",)), Mesh(devices.reshape(2, 2), ("data", "model"))
    report = {}
    contexts = {
        "shardy": contextlib.nullcontext(),
        "gspmd": gspmd(),
        "tpu": mock.patch.object(jax.lax, "platform_dependent", as_on_tpu),
    }
    for partitioner, context in contexts.items():
        with context:
            jax.clear_caches()
            for name, case in cases(meshes).items():
                report[f"{partitioner}: {name}"] = run(*case)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
