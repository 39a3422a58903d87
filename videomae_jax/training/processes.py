"""Several processes that train one model together, and a signal to end."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import jax


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Start jax.distributed; without arguments as the cluster says: TPU slices, GKE, SLURM, MPI.

    Raises:
        ValueError: where the others can't be found.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is not None for value in given) and None in given:
        raise ValueError("--coordinator, --num-processes and --process-id go together")
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[0]
        raise ValueError(
            f"jax.distributed can't start ({text}); say --coordinator HOST:PORT --num-processes N "
            f"--process-id I"
        ) from error


def leave(code: int) -> None:
    """End this process now, for a failure of its own: the others would be waited for in vain."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, as from a machine that is about to be taken away.

    Outside the main thread, which alone may handle signals, nothing is handled.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handler = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, handler)
