"""Work that goes on while something else is done."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
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
