"""Where does each array live? Meshes, and which axis of which parameter is cut.

A mesh has two axes: "data", over which a batch is spread, and "model", over which parameters are
cut where a model doesn't fit on one device. Three ways:

    replicated  every device holds all parameters; nothing is exchanged
    fsdp        each device of the "model" axis holds a part of each large parameter; those of a
                layer are gathered when it is its turn; the batch is spread over both axes
    tensor      the hidden layer of each MLP, two thirds of a layer, is spread over the "model"
                axis, whose devices see the same clips; attention, whose kernels want all heads
                side by side, each of them computes whole; a sum of tokens is exchanged a layer
"""

import functools
import logging
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

logger = logging.getLogger(__name__)

SHARDINGS = ("replicated", "fsdp", "tensor")

# The end of a parameter's path -> its axis that is cut, counted from the last. What isn't here is
# small, and whole. Layers are stacked on a first axis, which is never cut: each is needed whole.
CUT_AXES: dict[str, dict[str, int]] = {
    "replicated": {},
    "fsdp": {
        "patch_embed/kernel": -1,
        "attention/qkv/kernel": -2,
        "attention/proj/kernel": -2,
        "mlp/fc1/kernel": -2,
        "mlp/fc2/kernel": -2,
        "encoder_to_decoder/kernel": -2,
        "decoder/head/kernel": -2,
        "classifier/kernel": -2,
    },
    "tensor": {
        "mlp/fc1/kernel": -1,
        "mlp/fc1/bias": -1,
        "mlp/fc2/kernel": -2,
    },
}


def mesh_of(
    devices: Sequence[Any] | None = None,
    *,
    sharding: str = "replicated",
    model_axis: int | None = None,
) -> Mesh:
    """A mesh ("data", "model") of the devices, by default this process's own.

    `model_axis` devices share a copy of the parameters, by default all; one where each has its own.

    Raises:
        ValueError: for an unknown way, or a `model_axis` that does not divide the devices.
    """
    check_sharding(sharding)
    devices = jax.local_devices() if devices is None else list(devices)
    if sharding == "replicated":
        if model_axis not in (None, 1):
            raise ValueError(f"sharding 'replicated' has a model axis of 1, got {model_axis}")
        model_axis = 1
    size = len(devices) if model_axis is None else model_axis
    if size < 1 or len(devices) % size:
        raise ValueError(f"a model axis of {size} does not divide {len(devices)} devices")
    return Mesh(np.array(devices).reshape(-1, size), ("data", "model"))


def check_sharding(sharding: str) -> None:
    """Raise ValueError for another way than `SHARDINGS`."""
    if sharding not in SHARDINGS:
        raise ValueError(f"sharding must be one of {', '.join(SHARDINGS)}, got {sharding!r}")


def param_shardings(params: Any, mesh: Mesh, *, sharding: str = "replicated") -> Any:
    """The tree of `NamedSharding` for a tree of parameters or of `jax.ShapeDtypeStruct`."""
    check_sharding(sharding)

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        return NamedSharding(mesh, _spec(name, leaf.shape, mesh.shape["model"], sharding))

    return jax.tree_util.tree_map_with_path(place, params)


def clip_sharding(mesh: Mesh, *, sharding: str = "replicated") -> NamedSharding:
    """Of clips [B, ...] and of what a model makes of them: how the batch is spread."""
    check_sharding(sharding)
    axes = ("data",) if sharding == "tensor" else ("data", "model")
    return NamedSharding(mesh, PartitionSpec(axes))


@functools.cache
def _say_whole(name: str, shape: tuple[int, ...], size: int) -> None:
    logger.info("%s %s is whole on each device: %d does not divide it", name, list(shape), size)


def _spec(name: str, shape: tuple[int, ...], size: int, sharding: str) -> PartitionSpec:
    for end, axis in CUT_AXES[sharding].items():
        if name == end or name.endswith(f"/{end}"):
            if shape[axis] % size:
                _say_whole(name, shape, size)
                break
            cut: list[str | None] = [None] * len(shape)
            cut[axis] = "model"
            return PartitionSpec(*cut)
    return PartitionSpec()
