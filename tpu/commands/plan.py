"""`python -m tpu plan`: its options, and what it prints."""

import argparse
import json
import math
from typing import Any

from tpu.chips import CHIPS
from tpu.commands.aot import add_network, chosen_config
from tpu.commands.job_options import whole

HOURS = 24.0


def add_plan(commands: Any) -> None:
    """Add the command to a parser's `commands`."""
    from tpu.plan_rates import DECODING

    command = commands.add_parser(
        "plan",
        help="how many chips, cores, hours and bytes a job takes, and what holds it up",
        description=make_plan.__doc__,
    )
    command.add_argument(
        "--videos", type=positive, required=True, metavar="N", help="how many: 1e9, 250000"
    )
    command.add_argument("--chip", choices=list(CHIPS), required=True, help="the TPU's version")
    add_network(command)
    command.add_argument(
        "--views", default="1x1", metavar="SEGMENTSxCROPS", help="as for run (default: 1x1)"
    )
    command.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        default="bfloat16",
        help="what is computed in (default: bfloat16)",
    )
    size = command.add_mutually_exclusive_group()
    size.add_argument("--chips", type=whole, metavar="N", help="how many there are")
    size.add_argument(
        "--hours", type=positive, metavar="H", help=f"how long it may take (default: {HOURS:g})"
    )
    _add_videos(command, list(DECODING))
    _add_machines(command)
    command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    command.set_defaults(run=make_plan)


def _add_videos(command: argparse.ArgumentParser, resolutions: list[str]) -> None:
    command.add_argument(
        "--resolution",
        choices=resolutions,
        default=resolutions[0],
        help=f"of the videos, among those whose decoding was measured (default: {resolutions[0]})",
    )
    command.add_argument(
        "--video-s", type=positive, default=10.0, metavar="S", help="their length (default: 10 s)"
    )
    command.add_argument(
        "--video-mb", type=positive, metavar="MB", help="their size (default: 2.5 for 10 s)"
    )
    decoding = command.add_mutually_exclusive_group()
    decoding.add_argument(
        "--decode-rate",
        type=positive,
        metavar="V",
        help="videos a second and core, as you measured",
    )
    decoding.add_argument(
        "--decode-ms", type=positive, metavar="MS", help="or milliseconds a video of one core"
    )


def _add_machines(command: argparse.ArgumentParser) -> None:
    rate = command.add_mutually_exclusive_group()
    rate.add_argument(
        "--chip-rate", type=positive, metavar="C", help="clips a second and chip, as you measured"
    )
    rate.add_argument(
        "--efficiency",
        type=share,
        default=0.4,
        metavar="E",
        help="or the share of the roofline that is reached, an assumption (default: 0.4)",
    )
    command.add_argument(
        "--cores-per-chip", type=positive, metavar="N", help="(default: of Google's machine type)"
    )
    command.add_argument(
        "--network-gbps", type=positive, metavar="G", help="Gb/s into a host for each of its chips"
    )
    command.add_argument(
        "--price-per-chip-hour", type=positive, metavar="P", help="in whatever currency"
    )
    command.add_argument(
        "--price-per-core-hour", type=positive, metavar="P", help="of cores on other hosts"
    )


def make_plan(options: argparse.Namespace) -> int:
    """Print how many chips, CPU cores, hours and bytes a job takes, and what holds it up.

    Nothing is run. Every figure says whether it is measured, modelled, assumed or given.
    """
    from tpu.plan import as_dict, own_hosts, with_more_cores
    from tpu.plan_text import as_text

    demand = demanded(options)
    hours = None if options.chips else options.hours or HOURS
    fleets = {
        "own": own_hosts(demand, chips=options.chips, hours=hours),
        "more": with_more_cores(demand, chips=options.chips, hours=hours),
    }
    name = options.model if options.config is None else str(options.config)
    prices = {"chip_hour": options.price_per_chip_hour, "core_hour": options.price_per_core_hour}
    if options.json:
        print(json.dumps({"model": name, **as_dict(demand, fleets, **prices)}))
        return 0
    text = as_text(
        demand,
        fleets,
        what=f"{name}, {options.views} views, {options.dtype}",
        chips_given=options.chips is not None,
        **prices,
    )
    print(text)
    return 0


def demanded(options: argparse.Namespace) -> Any:
    """What the options ask for, with what was measured or modelled where they say nothing.

    Raises:
        ValueError: for views or a network that can't be.
    """
    from tpu import plan_rates
    from tpu.plan import GIVEN, MODELLED, Demand, Figure
    from videomae_jax.views import Views

    config = chosen_config(options)
    chip, resolution, length = options.chip, options.resolution, options.video_s

    def given(value: float | None, unit: str) -> Figure | None:
        return None if value is None else Figure(value, unit, GIVEN)

    pixels = config.num_frames * math.prod(config.image_size) * config.num_channels
    network, megabytes = options.network_gbps, options.video_mb
    return Demand(
        chip=chip,
        videos=Figure(math.ceil(options.videos), "videos", GIVEN),
        views=Figure(Views.parse(options.views).count, "clips", GIVEN),
        clip_bytes=Figure(pixels, "bytes", MODELLED, "frames x height x width x colours"),
        video_bytes=given(megabytes and megabytes * 1e6, "bytes")
        or plan_rates.video_bytes(resolution, length),
        clips_per_chip=given(options.chip_rate, "clips/s")
        or plan_rates.chip_rate(config, chip, dtype=options.dtype, efficiency=options.efficiency),
        videos_per_core=plan_rates.given_decode_rate(options.decode_rate, options.decode_ms)
        or plan_rates.decode_rate(resolution, length),
        cores_per_chip=given(options.cores_per_chip, "cores") or plan_rates.cores_per_chip(chip),
        network_per_chip=given(network and network * 1e9 / 8, "bytes/s")
        or plan_rates.network_per_chip(chip),
        row_bytes=plan_rates.row_bytes(config.hidden_size),
    )


def positive(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return value


def share(text: str) -> float:
    """Above 0, and 1 at most."""
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and 1 at most, got {text}")
    return value
