"""What a TPU chip can do, and what comes with it, by the name that topologies begin with."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One chip: peak FLOP/s in bfloat16, bytes of main memory (HBM), and bytes/s from it.

    `vmem_bytes` is the memory beside the arithmetic, of all cores; `most_chips` a whole pod.
    """

    flops_per_second: float
    memory_bytes: float
    bytes_per_second: float
    vmem_bytes: int
    most_chips: int
    dimensions: int
    # v4 has two cores that work as one device, as JAX has it on a real one.
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# From Google Cloud's pages on each version, docs.cloud.google.com/tpu/docs/v4, v5e, v5p and v6e;
# VMEM, which they don't tell, from JAX's own table, jax/_src/pallas/mosaic/tpu_info.py.
CHIPS = {
    "v4": Chip(
        flops_per_second=275e12,
        memory_bytes=32 * 2**30,
        bytes_per_second=1228e9,
        vmem_bytes=32 * 2**20,
        most_chips=4096,
        dimensions=3,
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        flops_per_second=197e12,
        memory_bytes=16 * 2**30,
        bytes_per_second=819e9,
        vmem_bytes=128 * 2**20,
        most_chips=256,
        dimensions=2,
    ),
    "v5p": Chip(
        flops_per_second=459e12,
        memory_bytes=95 * 2**30,
        bytes_per_second=2765e9,
        vmem_bytes=128 * 2**20,
        most_chips=8960,
        dimensions=3,
    ),
    "v6e": Chip(
        flops_per_second=918e12,
        memory_bytes=32 * 2**30,
        bytes_per_second=1640e9,
        vmem_bytes=128 * 2**20,
        most_chips=256,
        dimensions=2,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Host:
    """The virtual machine that chips of a slice come with: Google's machine type, `chips` on it.

    `vcpus` are hardware threads; `network_bytes_per_second` is the host's share of the data centre
    network, one way, of all its chips.
    """

    machine_type: str
    chips: int
    vcpus: int
    network_bytes_per_second: float


# Threads: the pages named above, "VM types", as `gcloud compute machine-types list` has them, of
# the types with 4 chips, which slices of several hosts are made of. For 1, 4 or 8 chips there are
# 24, 112 or 224 of v5e and 44, 180 or 360 of v6e. Network: the same pages for v5e and v6e (2 x 100
# and 4 x 200 Gb/s for 8 chips), jax-ml.github.io/scaling-book/tpus for the others.
HOSTS = {
    "v4": Host(machine_type="ct4p-hightpu-4t", chips=4, vcpus=240, network_bytes_per_second=25e9),
    "v5e": Host(
        machine_type="ct5lp-hightpu-4t", chips=4, vcpus=112, network_bytes_per_second=12.5e9
    ),
    "v5p": Host(machine_type="ct5p-hightpu-4t", chips=4, vcpus=208, network_bytes_per_second=25e9),
    "v6e": Host(machine_type="ct6e-standard-4t", chips=4, vcpus=180, network_bytes_per_second=50e9),
}


def parse_topology(name: str) -> tuple[Chip, str, int]:
    """("v5e:2x2") -> (the chip, the full name, the number of chips); "v5e" alone is one chip.

    Raises:
        ValueError: for an unknown chip, or a shape that is none of it.
    """
    kind, _, shape = name.partition(":")
    chip = CHIPS.get(kind)
    if chip is None:
        raise ValueError(
            f"topology must begin with one of {', '.join(CHIPS)}, as in v5e:2x2, got {name!r}"
        )
    sides = (shape or "x".join("1" * chip.dimensions)).split("x")
    whole = all(side.isdecimal() and 1 <= int(side) <= 256 for side in sides)
    if len(sides) != chip.dimensions or not whole:
        example = "x".join("221"[: chip.dimensions])
        raise ValueError(
            f"a topology of {kind} has {chip.dimensions} sides, as in {kind}:{example}, "
            f"got {name!r}"
        )
    chips = math.prod(map(int, sides))
    if chips > chip.most_chips:
        raise ValueError(
            f"a topology of {kind} has {chip.most_chips} chips at most, got {name!r}: {chips}"
        )
    return chip, f"{kind}:{'x'.join(sides)}", chips
