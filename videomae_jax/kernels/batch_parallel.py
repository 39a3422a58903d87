"""Functions of a batch, run on each chip's share of it where the batch is sharded."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

# One array or a tuple of them.
Arrays = Any


def batch_parallel(
    function: Callable[..., Arrays], *, batch_axes: int = 1
) -> Callable[..., Arrays]:
    """`function` of arrays [B, ...] to one or several [B, ...], for a batch sharded in any way.

    Hand-written kernels and loops over clips don't partition themselves: XLA would gather the
    batch on every chip. Here it stays as it is sharded and every other axis is made whole on each
    chip, under plain `jax.jit` as inside `shard_map`. The rows of the batch must not depend on each
    other. With more `batch_axes` than one, which `jax.vmap` adds, that many leading axes are the
    batch; `function` sees them as one. On one chip the program is that of `function` alone.
    There is no gradient: a `jax.custom_vjp` belongs around it.

    On TPU the batch is spread over all axes of the mesh that it can be divided by, in their order:
    where it is sharded over some of them only, what comes out is gathered over the others.
    """

    def one_chip(*arrays: Array) -> Arrays:
        leading = arrays[0].shape[:batch_axes]
        rows = math.prod(leading)
        results = function(*(array.reshape(rows, *array.shape[batch_axes:]) for array in arrays))
        return jax.tree.map(lambda result: result.reshape(*leading, *result.shape[1:]), results)

    partitioned = custom_partitioning(one_chip)
    partitioned.def_partition(
        partition=functools.partial(_partition, one_chip, batch_axes),
        infer_sharding_from_operands=functools.partial(_infer_sharding, batch_axes),
        sharding_rule=functools.partial(_sharding_rule, batch_axes),
    )

    def spread(*arrays: Array) -> Arrays:
        structure = jax.tree.structure(jax.eval_shape(one_chip, *arrays))
        results = _spread.bind(*arrays, one_chip=one_chip, batch_axes=batch_axes)
        return jax.tree.unflatten(structure, results)

    # Without jit, an eager call would run `function` on the sharded arrays as they are.
    @custom_vmap
    @jax.jit
    def mappable(*arrays: ArrayLike) -> Arrays:
        return jax.lax.platform_dependent(*arrays, tpu=spread, default=partitioned)

    @mappable.def_vmap
    def fold(size: int, mapped: Sequence[bool], *arrays: ArrayLike) -> tuple[Arrays, Any]:
        whole = [
            array if is_mapped else jnp.broadcast_to(array, (size, *jnp.shape(array)))
            for array, is_mapped in zip(arrays, mapped, strict=True)
        ]
        results = batch_parallel(function, batch_axes=batch_axes + 1)(*whole)
        return results, jax.tree.map(lambda _: True, results)

    return mappable


# On CPU and GPU the partitioner asks how to cut the program once it knows how the batch is sharded.


def _partition(one_chip, batch_axes: int, mesh: Mesh, arguments, results):
    """What `custom_partitioning` asks for: the program of one chip, and every sharding."""
    spec = _batch_spec(batch_axes, [*arguments, *jax.tree.leaves(results)])
    return mesh, one_chip, _places(mesh, spec, results), _places(mesh, spec, arguments)


def _infer_sharding(batch_axes: int, mesh: Mesh, arguments, results):
    return _places(mesh, _batch_spec(batch_axes, arguments), results)


def _batch_spec(batch_axes: int, arrays) -> tuple:
    """How the batch is sharded, as the first array has it whose batch is sharded at all."""
    # GSPMD asks before it knows every sharding.
    shardings = (array.sharding for array in arrays if array.sharding is not None)
    specs = (sharding.spec[:batch_axes] for sharding in shardings)
    return next((tuple(spec) for spec in specs if any(spec)), ())


def _places(mesh: Mesh, spec: tuple, arrays):
    def place(array) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*spec, *(None,) * (len(array.shape) - len(spec))))

    return jax.tree.map(place, arrays)


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


# libtpu's partitioner never asks (https://github.com/jax-ml/jax/issues/38196), and a `shard_map`
# wants a mesh, which is known only when the traced program is lowered: it is made there. JAX tells
# the mesh to programs alone that hold a `custom_partitioning`, as the other platforms' branch does.

_spread = Primitive("batch_parallel")
_spread.multiple_results = True


@_spread.def_abstract_eval
def _abstract_result(*arrays, one_chip, batch_axes: int):
    del batch_axes
    # Unlike `eval_shape`, it keeps what a `shard_map` around needs to know.
    return jax.make_jaxpr(one_chip)(*arrays).out_avals


def _lower(context, *values, one_chip, batch_axes: int):
    axes = context.module_context.axis_context
    mesh = None if hasattr(axes, "manual_axes") else getattr(axes, "abstract_mesh", None)

    def program(*arrays: Array) -> list[Array]:
        return jax.tree.leaves(one_chip(*arrays))

    if mesh is not None and mesh.size > 1:
        spec = _widest_spec(mesh, context.avals_in[0].shape[:batch_axes])
        program = jax.shard_map(program, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return mlir.lower_fun(program, multiple_results=True)(context, *values)


mlir.register_lowering(_spread, _lower)


def _widest_spec(mesh, leading: Sequence[int]) -> PartitionSpec:
    """As many axes of the mesh as the leading axes of an array can be divided by."""
    free = dict(mesh.shape)
    spec = []
    # The last of them is the batch that `function` was written for, the others come from `vmap`.
    for length in reversed(leading):
        chosen = []
        for name, size in list(free.items()):
            if length % size == 0:
                chosen.append(name)
                length //= free.pop(name)
        spec.append(tuple(chosen))
    return PartitionSpec(*reversed(spec))
