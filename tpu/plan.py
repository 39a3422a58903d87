"""How many chips, cores, hours and bytes a job over many videos takes, and what holds it up.

A chip, the cores of its host and the host's network each let so many videos a second through; the
least of the three is what the job does. More CPU hosts (through Ray) add cores, and send clips
over the network in place of videos. All of it is arithmetic on the rates in `Demand`.
"""

import dataclasses
import math
from typing import Any

from tpu.chips import HOSTS

HOUR = 3600.0
# Where a figure comes from. What follows from several is modelled, whatever they are.
MEASURED, MODELLED, ASSUMED, GIVEN = "measured", "modelled", "assumed", "given"


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number, its unit, where it comes from (measured, modelled, assumed, given), and how.

    `least` and `most` are the ends of what was measured, where that was a range.
    """

    value: float
    unit: str
    basis: str
    source: str = ""
    least: float | None = None
    most: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demand:
    """What a job asks for, and how fast a chip, a core and the network are."""

    chip: str
    videos: Figure
    views: Figure
    clip_bytes: Figure
    video_bytes: Figure
    clips_per_chip: Figure
    videos_per_core: Figure
    cores_per_chip: Figure
    network_per_chip: Figure
    row_bytes: dict[str, Figure]

    @property
    def rates(self) -> dict[str, float]:
        """Videos a second and chip that chips, the cores of their hosts and the network allow."""
        return {
            "chips": self.clips_per_chip.value / self.views.value,
            "cores": self.videos_per_core.value * self.cores_per_chip.value,
            "network": self.network_per_chip.value / self.video_bytes.value,
        }

    @property
    def bottleneck(self) -> str:
        """Which of `rates` is the least."""
        rates = self.rates
        return min(rates, key=rates.__getitem__)

    def with_decoding_at(self, rate: float) -> "Demand":
        """The same with another number of videos a second and core."""
        decoding = dataclasses.replace(self.videos_per_core, value=rate)
        return dataclasses.replace(self, videos_per_core=decoding)

    @property
    def clips_bytes(self) -> float:
        """Bytes of the clips of one video, all views, as uint8."""
        return self.views.value * self.clip_bytes.value

    @property
    def balanced_rates(self) -> dict[str, float]:
        """`rates` where other hosts have as many cores as it takes.

        What the host's own cores can't decode arrives over its network as clips, not as a video.
        """
        rates = self.rates
        own, network = rates["cores"], rates["network"]
        if network > own:
            left = self.network_per_chip.value - own * self.video_bytes.value
            network = own + left / self.clips_bytes
        return {"chips": rates["chips"], "network": network}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fleet:
    """So many chips with their hosts, and what they do; `extra_cores` are on other hosts."""

    chips: int
    hosts: int
    cores: int
    extra_cores: int
    bottleneck: str
    videos_per_second: float
    hours: float
    # Of the whole time, how much each works: of the chips, all cores, the network of the hosts.
    busy: dict[str, float]
    # Bytes a second: out of storage, into the hosts of the chips, and from them to the chips.
    storage_bytes_per_second: float
    network_bytes_per_second: float
    link_bytes_per_second: float

    @property
    def chip_hours(self) -> float:
        """What chips are paid for."""
        return self.chips * self.hours

    @property
    def extra_core_hours(self) -> float:
        """What cores on other hosts are paid for."""
        return self.extra_cores * self.hours


def own_hosts(demand: Demand, *, chips: int | None = None, hours: float | None = None) -> Fleet:
    """The hosts that come with the chips do all decoding; `chips`, or as many as `hours` takes."""
    return _fleet(demand, demand.rates, chips=chips, hours=hours)


def with_more_cores(
    demand: Demand, *, chips: int | None = None, hours: float | None = None
) -> Fleet:
    """As `own_hosts`, with as many cores on other hosts as the chips or their network can use."""
    return _fleet(demand, demand.balanced_rates, chips=chips, hours=hours)


def _fleet(
    demand: Demand, rates: dict[str, float], *, chips: int | None, hours: float | None
) -> Fleet:
    bottleneck = min(rates, key=rates.__getitem__)
    rate = rates[bottleneck]
    if chips is None:
        if hours is None:
            raise ValueError("say how many chips there are, or how many hours it may take")
        chips = _round_up(demand.videos.value / (hours * HOUR) / rate)
    host = HOSTS[demand.chip]
    total = chips * rate
    own = min(rate, demand.rates["cores"])
    cores = math.floor(chips * demand.cores_per_chip.value)
    extra = _round_up((rate - own) * chips / demand.videos_per_core.value)
    network = own * demand.video_bytes.value + (rate - own) * demand.clips_bytes
    return Fleet(
        chips=chips,
        hosts=math.ceil(chips / host.chips),
        cores=cores,
        extra_cores=extra,
        bottleneck=bottleneck,
        videos_per_second=total,
        hours=demand.videos.value / total / HOUR,
        busy={
            "chips": rate / demand.rates["chips"],
            "cores": total / demand.videos_per_core.value / (cores + extra),
            "network": network / demand.network_per_chip.value,
        },
        storage_bytes_per_second=total * demand.video_bytes.value,
        network_bytes_per_second=chips * network,
        link_bytes_per_second=total * demand.clips_bytes,
    )


def _round_up(value: float) -> int:
    """The next whole number, unless it is above one by rounding alone."""
    return math.ceil(value * (1 - 1e-12))


def total_bytes(demand: Demand) -> dict[str, float]:
    """Of the whole job: read from storage, over the link to the chips, written for each task."""
    videos = demand.videos.value
    return {
        "read": videos * demand.video_bytes.value,
        "link": videos * demand.clips_bytes,
        **{task: videos * row.value for task, row in demand.row_bytes.items()},
    }


def cost(fleet: Fleet, *, chip_hour: float | None, core_hour: float | None) -> float | None:
    """The price of a fleet; None where nobody said what a chip costs, or cores that were added."""
    if chip_hour is None or (fleet.extra_cores and core_hour is None):
        return None
    return fleet.chip_hours * chip_hour + fleet.extra_core_hours * (core_hour or 0.0)


def as_dict(
    demand: Demand,
    fleets: dict[str, Fleet],
    *,
    chip_hour: float | None = None,
    core_hour: float | None = None,
) -> dict[str, Any]:
    """All of it, for JSON: `inputs` say where they come from, everything else is modelled."""
    return {
        "inputs": dataclasses.asdict(demand),
        "basis": MODELLED,
        "videos_per_second_a_chip": demand.rates,
        "bottleneck": demand.bottleneck,
        "bytes": total_bytes(demand),
        "fleets": {
            name: {
                **dataclasses.asdict(fleet),
                "chip_hours": fleet.chip_hours,
                "extra_core_hours": fleet.extra_core_hours,
                "price": cost(fleet, chip_hour=chip_hour, core_hour=core_hour),
            }
            for name, fleet in fleets.items()
        },
    }
