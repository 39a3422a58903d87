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

    Outside the main thread, which alone may handle signals, nothing is handled.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    finished = threading.Event()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python's handlers wait for a compilation to end. The number of a signal is written to the
    # pipe at once, and a thread reads it there.
    handler = signal.signal(signal.SIGTERM, lambda *_: stop.asked.set())
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    waiting = threading.Thread(target=_wait, args=(reading, stop, finished), daemon=True)
    waiting.start()
    try:
        yield stop
    finally:
        finished.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.write(writing, b"\0")
        waiting.join()
        os.close(reading)
        os.close(writing)


def _wait(reading: int, stop: Stop, finished: threading.Event) -> None:
    while not finished.is_set():
        if os.read(reading, 1) != bytes([signal.SIGTERM]):
            continue
        stop.asked.set()
        if not finished.wait(GRACE_S):
            rescuing = threading.Thread(target=stop.rescue, daemon=True)
            rescuing.start()
            rescuing.join(WRITE_S)
            os._exit(0)
