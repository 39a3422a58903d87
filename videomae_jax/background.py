"""Work that goes on while something else is done."""

import collections
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any


def in_background(function: Callable[..., Any], *arguments: Any, **options: Any) -> Future:
    """Start a call in a thread of its own; `result()` waits for it, and raises what it raises.

    Unlike a pool's, the thread never keeps a program from ending.
    """
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def one_ahead(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[tuple[Any, Future]]:
    """Each item with its finished call, while the call for the next one is under way.

    The first call starts at once, before anything is asked for.
    """
    started = [in_background(function, item) for item in items[:1]]

    def taken() -> Iterator[tuple[Any, Future]]:
        for number, item in enumerate(items, start=1):
            call = started.pop()
            wait([call])
            started.extend(in_background(function, each) for each in items[number : number + 1])
            yield item, call

    return taken()


def several_ahead(
    function: Callable[[Any], Any], items: Sequence[Any], *, count: int
) -> Iterator[tuple[Any, Future]]:
    """Each item with its finished call, in order, while calls for the next ones are under way.

    Not more than `count` are under way, or done and not taken, at any time; so many start at once,
    before anything is asked for.
    """
    started = collections.deque(in_background(function, item) for item in items[:count])

    def taken() -> Iterator[tuple[Any, Future]]:
        for number, item in enumerate(items):
            call = started.popleft()
            wait([call])
            following = items[number + count : number + count + 1]
            started.extend(in_background(function, each) for each in following)
            yield item, call

    return taken()


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
