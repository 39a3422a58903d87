"""Sharded parameters, in a process of its own that has four CPU devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.sharded_params DIRECTORY

Prints JSON: for each way and size of the model axis how far logits are from those of one device,
what is exchanged, and the share of the parameters that each device holds. DIRECTORY is a converted
one of `CONFIG`, which is loaded into place.
"""

import dataclasses
import json
import re
import sys

import jax
import numpy as np

import videomae_jax as vm
from tests.configs import TINY, random_clips
from videomae_jax.sharding import clip_sharding, mesh_of, param_shardings

CONFIG = dataclasses.replace(
    TINY, hidden_size=32, num_attention_heads=4, intermediate_size=64, num_labels=8
)
WAYS = [("replicated", 1), ("fsdp", 2), ("fsdp", 4), ("tensor", 2), ("tensor", 4)]
COLLECTIVE = re.compile(
    r"= f32\[([0-9,]*)\]\S* (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
)


def held(params) -> float:
    """The largest share of the parameters' bytes that a device holds."""
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    bytes_of = dict.fromkeys(jax.devices(), 0)
    for leaf in jax.tree.leaves(params):
        for shard in leaf.addressable_shards:
            bytes_of[shard.device] += shard.data.nbytes
    return max(bytes_of.values()) / total


def report(directory: str, way: str, size: int) -> dict:
    mesh = mesh_of(sharding=way, model_axis=size)
    checkpoint = vm.load(directory, place=lambda like: param_shardings(like, mesh, sharding=way))
    whole = vm.load(directory)
    clips = random_clips(CONFIG, batch=8)

    def forward(params, clips):
        return checkpoint.model.apply({"params": params}, clips)

    wanted = np.asarray(jax.jit(forward)(whole.params, clips))
    placed = jax.device_put(clips, clip_sharding(mesh, sharding=way))
    compiled = jax.jit(forward).lower(checkpoint.params, placed).compile()
    given = np.asarray(compiled(checkpoint.params, placed))
    exchanged = [
        [kind, [int(side) for side in shape.split(",")]]
        for shape, kind in COLLECTIVE.findall(compiled.as_text())
    ]
    return {
        "error": float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted)),
        "exchanged": exchanged,
        "held": held(checkpoint.params),
        "clips": [shard.data.shape[0] for shard in placed.addressable_shards],
    }


def main(argv: list[str]) -> int:
    print(json.dumps({f"{way} {size}": report(argv[0], way, size) for way, size in WAYS}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
