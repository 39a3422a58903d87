"""The state of training and its batches on the devices of all processes."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings
from videomae_jax.training.checkpoints import named_leaves

Batch = Mapping[str, np.ndarray]
# Of a batch, what a step computes with.
FOR_DEVICES = ("frames", "sizes", "labels", "valid")


class Devices:
    """All devices of all processes, as one mesh; see `sharding.py` for the ways.

    Raises:
        ValueError: for a way or a `model_axis` that can't be, see `mesh_of`.
    """

    def __init__(self, *, sharding: str = "replicated", model_axis: int | None = None):
        self.sharding = sharding
        self.mesh: Mesh = mesh_of(jax.devices(), sharding=sharding, model_axis=model_axis)
        self.whole = NamedSharding(self.mesh, PartitionSpec())
        self._batch = clip_sharding(self.mesh, sharding=sharding)

    def shardings(self, tree: Any) -> Any:
        """Where each array of a state goes: averages and moments where their parameters do."""
        leaves = named_leaves(tree)
        placed = param_shardings(leaves, self.mesh, sharding=self.sharding)
        return jax.tree.structure(tree).unflatten([placed[name] for name in leaves])

    def check_batch(self, size: int, *, parts: int = 1) -> None:
        """Refuse a batch that can't be spread over the devices, in `parts` one after the other.

        Raises:
            ValueError: naming both.
        """
        count = self.mesh.size
        if size % (count * parts):
            by = f"{count} devices" + (f" and {parts} accumulated parts" if parts > 1 else "")
            raise ValueError(f"input.batch_size {size} can't be divided among {by}")

    def put(self, batch: Batch) -> dict[str, Array]:
        """The batch of all processes, of which this one gives its share."""
        return {
            name: jax.make_array_from_process_local_data(self._batch, batch[name])
            for name in FOR_DEVICES
            if name in batch
        }

    def flag(self, raised: bool) -> Array:
        """One number a device: whether its process asks for the end."""
        mine = np.full(jax.local_device_count(), raised, np.int32)
        spread = NamedSharding(self.mesh, PartitionSpec(("data", "model")))
        return jax.make_array_from_process_local_data(spread, mine)

    def compile_step(self, step: Callable[..., Any], like: Any, *, seed: int) -> Callable[..., Any]:
        """The step of all devices: (state, batch, flag) -> (state, metrics), the state used up.

        The key of a step is made of the seed and the step's number, and its metrics say in "stop"
        whether any process asks for the end: all of them hear of it after the same step.
        """

        def run(state: Any, batch: Any, flag: Array) -> tuple[Any, dict[str, Array]]:
            key = jax.random.fold_in(jax.random.key(seed), state.step)
            state, metrics = step(state, batch, key)
            return state, {**metrics, "stop": jnp.max(flag)}

        shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
        return jax.jit(run, donate_argnums=0, out_shardings=(shardings, self.whole))
