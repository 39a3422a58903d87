"""Compile the short-sequence kernels for a kind of TPU, on a machine that has none.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python -m tests.tpu_compile v5e:2x2

Prints JSON: for each program the bytes of its arguments and temporary arrays, the bytes it moves
and the collectives in it.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.four_devices import COLLECTIVE
from videomae_jax.kernels.short_attention import short_attention

CLIPS_A_CHIP = 2
# (what, heads, head width, tokens, dtype, chips): every head width of the models, each odd length.
PROGRAMS = (
    ("forward", 6, 64, 1568, "bfloat16", 4),
    ("gradient", 6, 64, 1568, "bfloat16", 1),
    ("forward", 16, 24, 1568, "bfloat16", 1),
    ("gradient", 16, 24, 1568, "bfloat16", 4),
    ("forward", 16, 80, 1568, "bfloat16", 1),
    ("forward", 16, 88, 1568, "bfloat16", 4),
    ("gradient", 16, 88, 1568, "float32", 1),
    ("gradient", 6, 64, 160, "float32", 4),
    ("gradient", 3, 64, 7, "bfloat16", 4),
    ("forward", 2, 64, 1, "bfloat16", 1),
    ("forward", 2, 160, 1569, "float32", 1),
)


def compiled(function, devices, shape, dtype):
    mesh = Mesh(np.array(devices), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    clips = jax.ShapeDtypeStruct((CLIPS_A_CHIP * len(devices), *shape), dtype, sharding=place)
    return jax.jit(function).lower(clips).compile()


def report_on(program) -> dict:
    memory = program.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "moved": program.cost_analysis()["bytes accessed"],
        "collectives": COLLECTIVE.findall(program.as_text()),
    }


def main(topology: str) -> int:
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    report = {}
    for kind, num_heads, head_width, length, dtype, count in PROGRAMS:
        attend = functools.partial(short_attention, num_heads=num_heads, scale=head_width**-0.5)

        def loss(qkv, attend=attend):
            return jnp.sum(attend(qkv).astype(jnp.float32) ** 2)

        function = jax.grad(loss) if kind == "gradient" else attend
        shape = (length, 3 * num_heads * head_width)
        name = f"{kind} {num_heads}x{head_width} {length} {dtype} on {count}"
        try:
            report[name] = report_on(compiled(function, chips[:count], shape, dtype))
        except Exception as error:
            report[name] = {"error": str(error)[:500]}
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
