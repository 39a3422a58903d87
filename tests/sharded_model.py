"""The whole model over a sharded batch, in a process of its own that has four CPU devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.sharded_model

Prints JSON: for each attention backend, how far logits and gradients are from those of one device,
and the collectives in both compiled programs.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.configs import TINY, random_clips, random_params
from tests.four_devices import COLLECTIVE
from videomae_jax.model import VideoClassifier, abstract_params

BACKENDS = (None, "blocked", "cudnn", "xla")


def error(given, wanted) -> float:
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(wanted), strict=True)
    return max(
        float(np.linalg.norm(np.asarray(one) - np.asarray(other)) / np.linalg.norm(other))
        for one, other in pairs
    )


def report_on(backend: str | None, mesh: Mesh) -> dict:
    model = VideoClassifier(TINY, attention_backend=backend)
    params = random_params(abstract_params(model))
    clips = random_clips(TINY, batch=8)
    weights = jnp.cos(jnp.arange(8 * TINY.num_labels, dtype=jnp.float32)).reshape(8, -1)

    def forward(params, clips):
        return model.apply({"params": params}, clips)

    def loss(params, clips):
        return jnp.sum(forward(params, clips) * weights)

    placed = (
        jax.device_put(params, NamedSharding(mesh, PartitionSpec())),
        jax.device_put(clips, NamedSharding(mesh, PartitionSpec("data"))),
    )
    found = {}
    for name, function in (("forward", forward), ("gradient", jax.grad(loss))):
        compiled = jax.jit(function).lower(*placed).compile()
        found[name] = {
            "error": error(compiled(*placed), jax.jit(function)(params, clips)),
            "collectives": sorted(set(COLLECTIVE.findall(compiled.as_text()))),
        }
    return found


def main() -> int:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    print(json.dumps({str(backend): report_on(backend, mesh) for backend in BACKENDS}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
