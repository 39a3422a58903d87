"""A plan as text: what goes in and where it comes from, then what follows, all of it modelled."""

from tpu.plan import GIVEN, MODELLED, Demand, Figure, Fleet, cost, total_bytes

HOLDS_UP = {
    "chips": "the chips",
    "cores": "the cores of their hosts",
    "network": "the network of their hosts",
}
NAMES = {
    "own": "hosts of the chips alone",
    "more": "with more CPU hosts",
}


def as_text(
    demand: Demand,
    fleets: dict[str, Fleet],
    *,
    what: str,
    chips_given: bool,
    chip_hour: float | None = None,
    core_hour: float | None = None,
) -> str:
    """Inputs, what a chip and its share of the host can do, the fleets, bytes, prices."""
    parts = [
        [f"{demand.videos.value:,.0f} videos, {what}, on {demand.chip}"],
        ["", "What goes in", *_inputs(demand)],
        ["", "Videos a second for each chip", *_rates(demand)],
        ["", *_fleets(fleets, chips_given, chip_hour, core_hour)],
        ["", "Bytes of the whole job", *_bytes(demand)],
        ["", *_verdict(demand, fleets)],
    ]
    return "\n".join(line for part in parts for line in part)


def _inputs(demand: Demand) -> list[str]:
    rows = {
        "videos a second and core": demand.videos_per_core,
        "clips a second and chip": demand.clips_per_chip,
        "clips a video": demand.views,
        "cores for each chip": demand.cores_per_chip,
        "network for each chip": demand.network_per_chip,
        "bytes of a video": demand.video_bytes,
        "bytes of a clip, uint8": demand.clip_bytes,
    }
    return [
        _row(name, _value(figure), figure.basis, figure.source) for name, figure in rows.items()
    ]


def _rates(demand: Demand) -> list[str]:
    notes: dict[str, str] = {
        name: "<- the least" * (name == demand.bottleneck) for name in demand.rates
    }
    cores, per_chip = demand.videos_per_core, demand.cores_per_chip.value
    if cores.least is not None and cores.most is not None:
        span = f"{per_chip * cores.least:,.1f} to {per_chip * cores.most:,.1f} as was measured"
        notes["cores"] = f"{span} {notes['cores']}"
    return [
        _row(HOLDS_UP[name], f"{rate:,.1f}", MODELLED, notes[name])
        for name, rate in demand.rates.items()
    ]


def _fleets(
    fleets: dict[str, Fleet],
    chips_given: bool,
    chip_hour: float | None,
    core_hour: float | None,
) -> list[str]:
    rows = {
        "chips": (lambda fleet: f"{fleet.chips:,}", GIVEN if chips_given else MODELLED),
        "hosts of them": (lambda fleet: f"{fleet.hosts:,}", MODELLED),
        "cores of those": (lambda fleet: f"{fleet.cores:,}", MODELLED),
        "cores on other hosts": (lambda fleet: f"{fleet.extra_cores:,}", MODELLED),
        "hours": (lambda fleet: f"{fleet.hours:,.2f}", MODELLED),
        "videos a second": (lambda fleet: f"{fleet.videos_per_second:,.0f}", MODELLED),
        "chips busy": (lambda fleet: f"{fleet.busy['chips']:.0%}", MODELLED),
        "cores busy": (lambda fleet: f"{fleet.busy['cores']:.0%}", MODELLED),
        "network busy": (lambda fleet: f"{fleet.busy['network']:.0%}", MODELLED),
        "from storage": (lambda fleet: f"{size(fleet.storage_bytes_per_second)}/s", MODELLED),
        "into those hosts": (lambda fleet: f"{size(fleet.network_bytes_per_second)}/s", MODELLED),
        "from them to the chips": (
            lambda fleet: f"{size(fleet.link_bytes_per_second)}/s",
            MODELLED,
        ),
        "chip-hours": (lambda fleet: f"{fleet.chip_hours:,.1f}", MODELLED),
    }
    if chip_hour is not None:
        rows["price"] = (lambda fleet: _price(fleet, chip_hour, core_hour), MODELLED)
    head = f"  {'':<26}" + "".join(f"{NAMES[name]:>26}" for name in fleets)
    lines = [
        f"  {name:<26}" + "".join(f"{show(fleet):>26}" for fleet in fleets.values()) + f"  {basis}"
        for name, (show, basis) in rows.items()
    ]
    return ["How much of it", head, *lines]


def _bytes(demand: Demand) -> list[str]:
    totals = total_bytes(demand)
    rows = {
        "read from storage": (totals["read"], ""),
        "over the link to the chips": (totals["link"], "uint8 clips"),
        **{
            f"written, {task}": (totals[task], f"{_value(row)} a row: {row.source}, {row.basis}")
            for task, row in demand.row_bytes.items()
        },
    }
    return [_row(name, size(total), MODELLED, note) for name, (total, note) in rows.items()]


def _verdict(demand: Demand, fleets: dict[str, Fleet]) -> list[str]:
    own, more = fleets["own"], fleets["more"]
    lines = [f"Bottleneck: {HOLDS_UP[demand.bottleneck]}."]
    if more.extra_cores:
        lines.append(
            f"Balanced by {more.extra_cores:,} cores on other hosts, through Ray "
            f"(python -m tpu ray): {more.chips:,} chips and {more.hours:,.2f} h in place of "
            f"{own.chips:,} and {own.hours:,.2f} h; the next limit: {HOLDS_UP[more.bottleneck]}."
        )
    elif demand.bottleneck == "network":
        lines.append("More cores would not help; smaller videos, or more hosts, would.")
    else:
        lines.append("The cores that come with the chips are enough: nothing to add.")
    if (least := demand.videos_per_core.least) is not None:
        slowest = demand.with_decoding_at(least).bottleneck
        if slowest != demand.bottleneck:
            lines.append(
                f"For videos that decode as slowly as the slowest measured: {HOLDS_UP[slowest]}."
            )
    return lines


def _price(fleet: Fleet, chip_hour: float, core_hour: float | None) -> str:
    price = cost(fleet, chip_hour=chip_hour, core_hour=core_hour)
    return "say a core's price" if price is None else f"{price:,.2f}"


def _value(figure: Figure) -> str:
    if figure.unit.startswith("bytes"):
        return size(figure.value) + figure.unit.removeprefix("bytes")
    return f"{figure.value:,.1f}" if figure.value % 1 else f"{figure.value:,.0f}"


def _row(name: str, value: str, basis: str, note: str) -> str:
    return f"  {name:<26}{value:>12}  {basis:<9} {note}".rstrip()


def size(count: float) -> str:
    """Bytes in the largest decimal unit that leaves at least one."""
    for unit in ("B", "kB", "MB", "GB", "TB", "PB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} EB"
