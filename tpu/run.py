"""The batch job of one process: decode -> batches -> device -> rows, all at the same time.

    decode processes -> this thread fills batches -> device -> a thread merges views and writes

Two batches are on the device or on their way while the next is filled. Every batch has the same
shape, so there is one program; the last is filled up with zeros whose answers nobody reads.
"""

import dataclasses
import math
import mmap
import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tpu.decode_pool import Answer, DecodePool
from tpu.decoder import Decoded
from tpu.predict import Predictor
from tpu.progress import Progress
from tpu.reading import Reading
from tpu.results import Results
from tpu.rows import result_row
from tpu.stopping import Stop

if TYPE_CHECKING:
    from tpu.manifest import Manifest

LOOK_S = 0.5
"""Seconds between looks at the clock and at whether to stop."""
LAST_BATCHES_S = 8.0
"""For batches on the device when the job is asked to stop."""


@dataclasses.dataclass(kw_only=True)
class Pending:
    """A video whose views are on their way: what they gave so far, and how many are missing."""

    decoded: Decoded
    retries: int
    outputs: list[np.ndarray | None]
    missing: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Clips uint8 [batch, ...], and whose they are: (row, view) of the first of them."""

    clips: np.ndarray
    places: list[tuple[int, int]] = dataclasses.field(default_factory=list)


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """uint8, zeros, at the start of a page: a CPU takes such memory without a copy."""
    return np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)


class Pipeline:
    """From decoded videos to rows in OUT; used by one thread, with another one behind it."""

    def __init__(
        self, manifest: "Manifest", results: Results, predictor: Predictor, progress: Progress
    ):
        self._manifest, self._results = manifest, results
        self._predictor, self._progress = predictor, progress
        self._pending: dict[int, Pending] = {}
        # Memory that is used again: new memory costs as much as the copy into it. One is computed,
        # one waits for the device, one for a place there, and one is filled.
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        for _ in range(4):
            self._free.put(aligned((predictor.batch, *predictor.clip_shape)))
        self._batch = Batch(clips=self._free.get())
        self._started: queue.Queue[tuple[Any, Batch, float] | None] = queue.Queue(1)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def add(self, answer: Answer, stop: threading.Event) -> None:
        """Take a video: its clips are copied before this returns, or its error is a row."""
        if answer.clips is None:
            self._write(answer.row, answer.decoded, answer.retries, None)
            return
        views = len(answer.clips)
        self._pending[answer.row] = Pending(
            decoded=answer.decoded, retries=answer.retries, outputs=[None] * views, missing=views
        )
        for view, clip in enumerate(answer.clips):
            self._batch.clips[len(self._batch.places)] = clip
            self._batch.places.append((answer.row, view))
            if len(self._batch.places) == self._predictor.batch:
                self._start(stop)

    def finish(self, stop: threading.Event) -> None:
        """Compute what is left, and wait for all of it; when asked to stop, not for long."""
        if self._batch.places and not stop.is_set():
            self._batch.clips[len(self._batch.places) :] = 0
            self._start(stop)
        self._put(None, stop)
        while self._thread.is_alive() and not stop.is_set():
            self._thread.join(LOOK_S)
            self._progress.tell()
        self._thread.join(LAST_BATCHES_S)
        self.check()

    def check(self) -> None:
        """Raise what the other thread has met."""
        if self._error is not None:
            raise self._error

    def _start(self, stop: threading.Event) -> None:
        batch, self._batch = self._batch, Batch(clips=self._free.get())
        begun = time.perf_counter()
        self._put((self._predictor.start(batch.clips), batch, begun), stop)

    def _put(self, started: tuple[Any, Batch, float] | None, stop: threading.Event) -> None:
        while self._error is None:
            try:
                return self._started.put(started, timeout=LOOK_S)
            except queue.Full:
                if stop.is_set():
                    break
                self._results.flush_old()
                self._progress.tell()
        self.check()
        return None

    def _collect(self) -> None:
        try:
            while (started := self._started.get()) is not None:
                array, batch, begun = started
                outputs = np.asarray(array)
                self._progress.busy.add(begun, time.perf_counter())
                # Only now: a CPU computes with the memory where it is.
                self._free.put(batch.clips)
                for (row, view), output in zip(batch.places, outputs, strict=False):
                    self._take(row, view, output)
        # It belongs to the thread that others wait for.
        except BaseException as error:
            self._error = error

    def _take(self, row: int, view: int, output: np.ndarray) -> None:
        video = self._pending[row]
        video.outputs[view] = output
        video.missing -= 1
        if not video.missing:
            del self._pending[row]
            outputs = np.stack([each for each in video.outputs if each is not None])
            self._write(row, video.decoded, video.retries, self._predictor.columns(outputs))

    def _write(
        self, row: int, decoded: Decoded, retries: int, answer: dict[str, Any] | None
    ) -> None:
        found = result_row(self._manifest, row, decoded, retries=retries, answer=answer)
        self._results.add(found)
        self._progress.add(failed=decoded.error is not None)


def decode_pool(
    manifest: "Manifest", rows: np.ndarray, reading: Reading, *, workers: int, timeout_s: float
) -> DecodePool:
    """A pool that decodes the videos of these rows, see `DecodePool`."""
    remote = bool(len(rows)) and "://" in manifest.location(int(rows[0]))
    return DecodePool(
        reading, videos(manifest, rows), workers=workers, timeout_s=timeout_s, remote=remote
    )


def videos(manifest: "Manifest", rows: np.ndarray) -> Iterator[tuple[int, str]]:
    """(row, what to open) of each."""
    for row in rows.tolist():
        yield row, manifest.location(row)


def run(
    manifest: "Manifest",
    results: Results,
    pool: DecodePool,
    predictor: Predictor,
    *,
    progress: Progress,
    stop: Stop,
    max_failures: int | None = None,
) -> str:
    """Do all that the pool decodes; returns "done", "stopped" or "failed".

    "stopped" when `stop` was asked for, "failed" after more than `max_failures` errors of this run;
    what was computed until then is in `results`.
    """
    pipeline = Pipeline(manifest, results, predictor, progress)
    outcome = "done"
    while not stop.asked.is_set():
        try:
            answer = pool.take(LOOK_S)
        except StopIteration:
            break
        pipeline.check()
        if answer is not None:
            pipeline.add(answer, stop.asked)
            pool.release(answer)
        else:
            results.flush_old()
        progress.tell()
        if max_failures is not None and progress.failed > max_failures:
            outcome = "failed"
            break
    pipeline.finish(stop.asked)
    return "stopped" if stop.asked.is_set() else outcome
