"""Many videos decoded at once: threads that fetch, processes that decode, bounded in between."""

import dataclasses
import os
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tpu.decoder import Decoded, Decoder, DecoderError, Slots
from tpu.files import download_folder, local_copy, retried, retries_of
from tpu.reading import Reading

FETCHED_AHEAD = 64
"""Videos of a bucket that are fetched while others are decoded, at most."""

LEAVE_S = 2.0
"""For all threads to end when the pool is left."""


class BadVideoError(ValueError):
    """A video that no clips can be made of; `transient` says that another attempt may help."""

    def __init__(self, decoded: Decoded):
        super().__init__(decoded.error)
        self.decoded, self.transient = decoded, decoded.transient


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of the video of a row; `clips` are uint8 [V, T, h, w, C], None with an `error`.

    Whoever takes it copies the clips and calls `release`.
    """

    row: int
    clips: np.ndarray | None
    decoded: Decoded
    retries: int
    slot: int | None = None


class DecodePool:
    """Decodes (row, location) pairs in `workers` processes; a context manager.

    Answers come as they are ready, not in order. No more videos are decoded than there is room for
    until answers are taken and released.

    timeout_s: of one decode; then it is abandoned and its row has an error.
    """

    def __init__(
        self,
        reading: Reading,
        videos: Iterator[tuple[int, str]],
        *,
        workers: int,
        timeout_s: float,
        remote: bool = False,
    ):
        self._videos = videos
        self._workers = workers
        self._taking = threading.Lock()
        self._stop = threading.Event()
        self._slots = Slots(reading, workers + max(2, workers // 8))
        self._free: queue.Queue[int] = queue.Queue()
        for slot in range(len(self._slots)):
            self._free.put(slot)
        self._all = [Decoder(reading, self._slots, timeout_s=timeout_s) for _ in range(workers)]
        self._idle: queue.Queue[Decoder] = queue.Queue()
        for decoder in self._all:
            self._idle.put(decoder)
        threads = workers + (min(FETCHED_AHEAD, 3 * workers) if remote else 0)
        self._ready: queue.Queue[Answer | BaseException | None] = queue.Queue(2 * threads)
        self._running = threads
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self) -> "DecodePool":
        self._folder = download_folder()
        self._downloads = Path(self._folder.__enter__())
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stop.set()
        for decoder in self._all:
            decoder.close()
        # One that waits for a network is left behind: it ends with the program.
        deadline = time.monotonic() + LEAVE_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        self._slots.close()
        self._folder.__exit__(*exception)

    def take(self, timeout_s: float) -> Answer | None:
        """The next answer, or None if there is none in time.

        Raises:
            StopIteration: when all are taken.
        """
        while self._running:
            try:
                answer = self._ready.get(timeout=timeout_s)
            except queue.Empty:
                return None
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                return answer
            self._running -= 1
        raise StopIteration

    def release(self, answer: Answer) -> None:
        """Say that the clips have been copied."""
        if answer.slot is not None:
            self._free.put(answer.slot)

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                with self._taking:
                    video = next(self._videos, None)
                if video is None:
                    break
                self._hand_over(self._answer(*video))
            self._hand_over(None)
        except _StoppedError:
            return
        except BaseException as error:
            self._hand_over(error)

    def _answer(self, row: int, location: str) -> Answer:
        try:
            (decoded, slot), retries = retried(
                lambda: self._attempt(location), sleep=self._sleep_unless_stopped
            )
        except (_StoppedError, DecoderError):
            raise
        # Filesystems have errors of their own: what can't be fetched is a row like any other.
        except Exception as error:
            failed = error.decoded if isinstance(error, BadVideoError) else Decoded()
            said = " ".join(str(error).split()).removeprefix(f"{location}: ")
            failed = dataclasses.replace(failed, error=said or type(error).__name__)
            return Answer(row=row, clips=None, decoded=failed, retries=retries_of(error))
        clips = self._slots.clips(slot)
        return Answer(row=row, clips=clips, decoded=decoded, retries=retries, slot=slot)

    def _attempt(self, location: str) -> tuple[Decoded, int]:
        with local_copy(location, self._downloads) as path:
            decoder = self._wait_for(self._idle)
            try:
                slot = self._wait_for(self._free)
                decoded = decoder.decode(os.fspath(path), slot)
            finally:
                self._idle.put(decoder)
            if self._stop.is_set():
                raise _StoppedError
            if decoded.error is None:
                return decoded, slot
            self._free.put(slot)
            said = decoded.error.replace(os.fspath(path), location)
            raise BadVideoError(dataclasses.replace(decoded, error=said))

    def _sleep_unless_stopped(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError

    def _wait_for(self, things: queue.Queue) -> Any:
        while not self._stop.is_set():
            try:
                return things.get(timeout=0.5)
            except queue.Empty:
                continue
        raise _StoppedError

    def _hand_over(self, answer: Answer | BaseException | None) -> None:
        while not self._stop.is_set():
            try:
                return self._ready.put(answer, timeout=0.5)
            except queue.Full:
                continue
        return None


class _StoppedError(Exception):
    """The job has ended while this was under way."""
