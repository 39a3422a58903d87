"""SIGTERM, as from a machine that is about to be taken away: end soon, and write what is done."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

GRACE_S = 12.0
"""From the signal until what is done is written, whatever else goes on; 20 s are promised."""
WRITE_S = 6.0
"""For that write."""


class Stop:
    """`asked` is set when the job should end soon; `rescue` writes what is done, at any moment."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.rescue: Callable[[], None] = lambda: None


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[Stop]:
    """Set `asked` on SIGTERM; end the process with 0 where the body doesn't within `GRACE_S`.

    A thread waits for the signal, because Python's handlers would wait for a compilation to end.
    To be entered before other threads are started: they must not take the signal.
    """
    stop, finished = Stop(), threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while not finished.is_set():
            if signal.sigtimedwait({signal.SIGTERM}, 0.5) is None:
                continue
            stop.asked.set()
            if not finished.wait(GRACE_S):
                writing = threading.Thread(target=stop.rescue, daemon=True)
                writing.start()
                writing.join(WRITE_S)
                os._exit(0)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        yield stop
    finally:
        finished.set()
        waiting.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
