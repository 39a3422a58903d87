"""Functions of a batch, run on each chip's share of it where the batch is sharded."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike


def batch_parallel(function: Callable[..., Array], *, batch_axes: int = 1) -> Callable[..., Array]:
    """`function` of arrays [B, ...] to an array [B, ...], for a batch sharded in any way.

    Hand-written kernels and loops over clips don't partition themselves: XLA would gather the
    batch on every chip. Here it stays as it is sharded and every other axis is made whole on each
    chip, under plain `jax.jit` as inside `shard_map`. The rows of the batch must not depend on each
    other. With more `batch_axes` than one, which `jax.vmap` adds, that many leading axes are the
    batch; `function` sees them as one. On one chip the program is that of `function` alone.
    There is no gradient: a `jax.custom_vjp` belongs around it.
    """

    def one_chip(*arrays: Array) -> Array:
        leading = arrays[0].shape[:batch_axes]
        rows = math.prod(leading)
        result = function(*(array.reshape(rows, *array.shape[batch_axes:]) for array in arrays))
        return result.reshape(*leading, *result.shape[1:])

    partitioned = custom_partitioning(one_chip)
    partitioned.def_partition(
        partition=functools.partial(_partition, one_chip, batch_axes),
        infer_sharding_from_operands=functools.partial(_infer_sharding, batch_axes),
        sharding_rule=functools.partial(_sharding_rule, batch_axes),
    )
    # Without jit, an eager call would run `function` on the sharded arrays as they are.
    mappable = custom_vmap(jax.jit(partitioned))

    @mappable.def_vmap
    def fold(size: int, mapped: Sequence[bool], *arrays: ArrayLike) -> tuple[Array, bool]:
        whole = [
            array if is_mapped else jnp.broadcast_to(array, (size, *jnp.shape(array)))
            for array, is_mapped in zip(arrays, mapped, strict=True)
        ]
        return batch_parallel(function, batch_axes=batch_axes + 1)(*whole), True

    return mappable


def _partition(one_chip, batch_axes: int, mesh: Mesh, arguments, result):
    """What `custom_partitioning` asks for: the program of one chip, and every sharding."""
    spec = _batch_spec(batch_axes, [*arguments, result])
    places = tuple(_place(mesh, spec, argument) for argument in arguments)
    return mesh, one_chip, _place(mesh, spec, result), places


def _infer_sharding(batch_axes: int, mesh: Mesh, arguments, result):
    return _place(mesh, _batch_spec(batch_axes, arguments), result)


def _batch_spec(batch_axes: int, arrays) -> tuple:
    """How the batch is sharded, as the first array has it whose batch is sharded at all."""
    # GSPMD asks before it knows every sharding.
    shardings = (array.sharding for array in arrays if array.sharding is not None)
    specs = (sharding.spec[:batch_axes] for sharding in shardings)
    return next((tuple(spec) for spec in specs if any(spec)), ())


def _place(mesh: Mesh, spec: tuple, array) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*spec, *(None,) * (len(array.shape) - len(spec))))


def _sharding_rule(batch_axes: int, mesh: Mesh, arguments, results):
    """The same for Shardy, as "b0 a0x1 a0x2, b0 a1x1 -> b0 r0x1", all but b0 to be made whole."""
    del mesh
    batch = [f"b{axis}" for axis in range(batch_axes)]
    whole: list[str] = []

    def factors(kind: str, types) -> str:
        arrays = []
        for place, of_array in enumerate(types):
            names = [f"{kind}{place}x{axis}" for axis in range(batch_axes, of_array.rank)]
            whole.extend(names)
            arrays.append(" ".join(batch + names))
        return ", ".join(arrays)

    rule = f"{factors('a', arguments)} -> {factors('r', results)}"
    return rule, {"need_replication_factors": tuple(whole)}
