"""How far the job is: a bar on a terminal, elsewhere a line of JSON every 30 seconds."""

import json
import sys
import threading
import time
from typing import Any, TextIO

EVERY_S = 30.0


class Busy:
    """How much of the time the device had work, by when each batch was begun and done.

    Batches are done in the order in which they were begun.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0
        self._busy = 0.0

    def add(self, begun: float, done: float) -> None:
        """A batch, in seconds of `time.perf_counter`."""
        if self._first is None:
            self._first = self._last = begun
        self._busy += max(0.0, done - max(begun, self._last))
        self._last = max(self._last, done)

    @property
    def waited(self) -> float | None:
        """The share of the time from the first batch to the last that the device waited."""
        if self._first is None or self._last == self._first:
            return None
        return max(0.0, 1 - self._busy / (self._last - self._first))


class Progress:
    """Counts rows and tells about it.

    total: rows to do in this run; `kept` were done before.
    """

    def __init__(self, total: int, kept: int, *, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self.total, self.kept = total, kept
        self.done = self.failed = 0
        self._lock = threading.Lock()
        self.busy = Busy()
        self._begun = self._told = time.monotonic()
        self._bar: Any = None
        if self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total + kept,
                initial=kept,
                unit="video",
                file=self._stream,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def add(self, *, failed: bool) -> None:
        """One more row; for any thread."""
        with self._lock:
            self.done += 1
            self.failed += failed
            if self._bar is not None:
                self._bar.update()

    def tell(self) -> None:
        """Show it, where it is time; call it often."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix(self._shares(), refresh=False)
        elif now - self._told >= EVERY_S:
            self._told = now
            self._print("progress")

    def end(self, event: str) -> None:
        """The last word."""
        if self._bar is not None:
            self._bar.set_postfix(self._shares())
            self._bar.close()
        else:
            self._print(event)

    def figures(self) -> dict[str, Any]:
        """Everything, ready for JSON; rates are of this run."""
        seconds = time.monotonic() - self._begun
        rate = self.done / seconds if seconds > 0 else 0.0
        left = self.total - self.done
        return {
            "done": self.kept + self.done,
            "of": self.kept + self.total,
            "failed": self.failed,
            "seconds": round(seconds, 3),
            "videos_per_s": round(rate, 3),
            "left_s": round(left / rate, 1) if rate else None,
            "device_waited": None if self.busy.waited is None else round(self.busy.waited, 4),
        }

    def _shares(self) -> dict[str, Any]:
        waited = self.busy.waited
        return {"failed": self.failed, "device waited": "-" if waited is None else f"{waited:.0%}"}

    def _print(self, event: str) -> None:
        self._stream.write(json.dumps({"event": event, **self.figures()}) + "\n")
        self._stream.flush()
