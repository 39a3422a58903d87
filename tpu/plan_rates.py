"""The rates that a plan begins with, where nobody gives better ones: measured and modelled."""

import dataclasses

from tpu.chips import CHIPS, HOSTS
from tpu.plan import ASSUMED, GIVEN, MEASURED, MODELLED, Figure
from videomae_jax.config import VARIANTS, VideoMAEConfig
from videomae_jax.flops import flops_per_clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
    """One kind of video as it was measured: milliseconds of one core for each, from and to.

    `bits_per_second` is no measurement: what such videos commonly have.
    """

    least_ms: float
    most_ms: float
    bits_per_second: float


# H.264, all frames decoded and 16 kept, PyAV, one thread. As every frame is decoded, the time is
# proportional to the length.
MEASURED_FRAMES, FRAMES_PER_SECOND = 900, 30
DECODING = {
    "480x270": Decoding(least_ms=70, most_ms=150, bits_per_second=2e6),
    "1920x1080": Decoding(least_ms=340, most_ms=390, bits_per_second=8e6),
}
# Bytes of HBM that a clip moves, as the TPU compiler accounts for it: (size, heads, dtype), chip.
# From benchmarks/results/tpu_modelled.json, uint8 clips.
TRAFFIC = {
    ("small", 6, "bfloat16"): {"v5e": 290_403_808, "v6e": 301_197_864},
    ("small", 16, "bfloat16"): {"v5e": 290_403_808, "v6e": 358_994_472},
    ("small", 6, "float32"): {"v5e": 507_062_816},
    ("base", 12, "bfloat16"): {"v5e": 564_452_512},
    ("large", 16, "bfloat16"): {"v5e": 2_108_007_360},
    ("huge", 16, "bfloat16"): {"v5e": 4_004_968_064, "v6e": 3_518_999_328},
}


def decode_rate(resolution: str, seconds: float) -> Figure:
    """Videos a second and core, of that resolution and length: the middle of what was measured."""
    measured = DECODING[resolution]
    share = seconds * FRAMES_PER_SECOND / MEASURED_FRAMES
    ms = share * (measured.least_ms + measured.most_ms) / 2
    source = (
        f"{ms:.3g} ms a video: {measured.least_ms:.0f} to {measured.most_ms:.0f} ms were measured "
        f"on one core for {MEASURED_FRAMES} frames of {resolution}; the middle"
    )
    if share != 1:
        source += f", and in proportion {seconds:g} s of {FRAMES_PER_SECOND} frames/s"
    return Figure(
        1e3 / ms,
        "videos/s",
        MEASURED if share == 1 else MODELLED,
        source,
        least=1e3 / (share * measured.most_ms),
        most=1e3 / (share * measured.least_ms),
    )


def given_decode_rate(rate: float | None, ms: float | None) -> Figure | None:
    """Videos a second and core as the user measured them, either way round."""
    if rate is not None:
        return Figure(rate, "videos/s", GIVEN)
    return None if ms is None else Figure(1e3 / ms, "videos/s", GIVEN, f"{ms:g} ms a video")


def chip_rate(config: VideoMAEConfig, chip: str, *, dtype: str, efficiency: float) -> Figure:
    """Clips a second and chip: the roofline (arithmetic, or memory where that is known), and less.

    No program reaches a roofline; `efficiency`, the share that one does, is an assumption.
    """
    flops, peak = flops_per_clip(config), CHIPS[chip]
    seconds = flops / peak.flops_per_second
    bound = f"{flops / 1e9:.1f} GFLOP at {peak.flops_per_second / 1e12:.0f} TFLOP/s"
    traffic = _traffic(config, chip, dtype)
    if traffic is not None and traffic / peak.bytes_per_second > seconds:
        seconds = traffic / peak.bytes_per_second
        bound = f"{traffic / 1e9:.3f} GB at {peak.bytes_per_second / 1e9:.0f} GB/s"
    unknown = "; its memory traffic was not compiled" if traffic is None else ""
    return Figure(
        efficiency / seconds,
        "clips/s",
        MODELLED,
        f"roofline {1e3 * seconds:.3f} ms ({bound}{unknown}), of which {efficiency:.0%} is "
        f"assumed to be reached",
    )


def _traffic(config: VideoMAEConfig, chip: str, dtype: str) -> float | None:
    """Bytes a clip, from the account of the same network; of v5e for a chip that has none."""
    for (name, heads, kind), accounts in TRAFFIC.items():
        known = dataclasses.replace(
            VARIANTS[name], num_attention_heads=heads, num_labels=config.num_labels
        )
        if kind == dtype and known == config:
            return accounts.get(chip, accounts["v5e"])
    return None


def cores_per_chip(chip: str) -> Figure:
    """Hardware threads of the machine type that the chip comes with, for each chip on it."""
    host = HOSTS[chip]
    return Figure(
        host.vcpus / host.chips,
        "cores",
        ASSUMED,
        f"{host.vcpus} vCPUs for {host.chips} chips ({host.machine_type}), each as fast as the "
        "core that was measured",
    )


def network_per_chip(chip: str) -> Figure:
    """Bytes a second that the host can receive, for each chip on it."""
    host = HOSTS[chip]
    return Figure(
        host.network_bytes_per_second / host.chips,
        "bytes/s",
        ASSUMED,
        f"{8 * host.network_bytes_per_second / 1e9:.0f} Gb/s for {host.chips} chips "
        f"({host.machine_type}), all of it usable",
    )


def video_bytes(resolution: str, seconds: float) -> Figure:
    """Bytes of a video of that resolution and length."""
    rate = DECODING[resolution].bits_per_second
    return Figure(rate * seconds / 8, "bytes", ASSUMED, f"{seconds:g} s of {rate / 1e6:g} Mb/s")


def row_bytes(width: int) -> dict[str, Figure]:
    """Bytes of a row for each task, before compression; `width` is that of an embedding."""
    # row, decode_s, frames, duration_s, retries; a path of 80 characters with its length; no error.
    shared = 8 + 4 * 4 + 84
    # Five classes: index, probability, a name of 16 characters with its length.
    top_5 = 5 * (4 + 4 + 20)
    return {
        "classify": Figure(shared + top_5, "bytes", ASSUMED, "5 classes, paths of 80 characters"),
        "embed": Figure(shared + 4 * width, "bytes", ASSUMED, f"{width} float32 and the path"),
    }
