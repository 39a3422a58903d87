"""Augmentation of a sharded batch, run in a process of its own that has four CPU devices.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.augmented_shards

Prints JSON: whether clips are those of one device, how they are sharded, and the collectives in the
compiled program.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.configs import TINY
from tests.four_devices import COLLECTIVE
from videomae_jax.training.augment import augment
from videomae_jax.training.settings import Augment

SETTINGS = Augment(randaugment="rand-m7-n2-mstd0.5-inc1", crop_area=(0.3, 1.0), flip=0.5, erase=0.5)


def main() -> int:
    shape = (8, TINY.num_frames, 14, 23, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    sizes = np.tile(np.array([[40, 52]], np.int32), (8, 1))
    change = jax.jit(
        functools.partial(
            augment, settings=SETTINGS, model=TINY, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)
        )
    )
    key = jax.random.key(3)
    wanted = np.asarray(change(key, jnp.asarray(frames), jnp.asarray(sizes)))
    mesh = Mesh(np.array(jax.devices()), ("data",))
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec("data")))
    compiled = change.lower(key, place(frames), place(sizes)).compile()
    got = compiled(key, place(frames), place(sizes))
    found = {
        "devices": len(jax.devices()),
        "difference": float(np.abs(np.asarray(got) - wanted).max()),
        "spec": str(got.sharding.spec[0]),
        "collectives": sorted(set(COLLECTIVE.findall(compiled.as_text()))),
    }
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
