"""Several sides of a comparison, timed in turns, so that a machine that slows down slows all."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

# A sample is of as many calls as fit in this, so that starting a call doesn't count on a GPU.
SECONDS_A_SAMPLE = 0.1
MOST_CALLS = 200
# Seconds after which no more is spent on warming up.
LONG = 3.0
# Threads that wait for work in a loop keep a core for some milliseconds, which the next side needs.
PAUSE = 0.05


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    `call` starts the work and returns what came or will come of it; `wait` returns when that, and
    so everything started before, is done.
    """

    call: Callable[[], Any]
    wait: Callable[[Any], Any]

    def seconds(self, calls: int) -> float:
        """Seconds a call, of `calls` started one after the other."""
        result = None
        start = time.perf_counter()
        for _ in range(calls):
            result = self.call()
        self.wait(result)
        return (time.perf_counter() - start) / calls


def in_turns(
    sides: Mapping[str, Side], rounds: int, *, after_round: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """Seconds a call of each side, one sample of each a round; every side has been called before.

    The order is turned round after each round, so that no side always follows the same one.
    """
    calls = {name: _calls(side) for name, side in sides.items()}
    samples: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for _ in range(rounds):
        for name in order:
            time.sleep(PAUSE)
            samples[name].append(sides[name].seconds(calls[name]))
        order.reverse()
        after_round()
    return samples


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of our samples over that of theirs: below 1 where ours is faster."""
    return statistics.median(ours) / statistics.median(theirs)


def _calls(side: Side) -> int:
    time.sleep(PAUSE)
    # The second and third calls may be slower than those that follow (CUDA graphs are recorded
    # in them, for one); long ones are so for good.
    seen: list[float] = []
    while len(seen) < 3 and sum(seen) < LONG:
        seen.append(side.seconds(1))
    return min(MOST_CALLS, math.ceil(SECONDS_A_SAMPLE / min(seen)))
