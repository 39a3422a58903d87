"""What a TPU chip can do, by the name that topologies begin with."""

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
