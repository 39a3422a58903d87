"""Work that goes on while something else is done."""

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
