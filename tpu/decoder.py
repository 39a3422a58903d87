"""A decode process and the memory that it writes to, as the job sees them.

libav can hang or crash on a damaged file, and Python runs one thread at a time: so each video is
decoded in a process, which is killed when it takes too long and started anew when it dies.
"""

import contextlib
import dataclasses
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing import Pipe
from typing import Any

import numpy as np

from tpu.job import BrokenOffError
from tpu.reading import Reading

START_TIMEOUT_S = 120.0
"""For a process to say that it is there; a busy machine may take long."""


class DecoderError(BrokenOffError):
    """No decode process can be started: no video's fault."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoded:
    """What became of one video: `frames` and the clips in its slot, or an `error`.

    `transient` says that another attempt may help. Seconds are of the decode.
    """

    frames: int | None = None
    duration_s: float | None = None
    decode_s: float | None = None
    error: str | None = None
    transient: bool = False


class Slots:
    """Memory for the clips of `count` videos, shared with decode processes."""

    def __init__(self, reading: Reading, count: int):
        # Unlike /dev/shm, whose size containers limit to 64 MB.
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("clips")
        else:
            with tempfile.TemporaryFile() as file:
                self.descriptor = os.dup(file.fileno())
        os.ftruncate(self.descriptor, count * reading.nbytes)
        self._memory = mmap.mmap(self.descriptor, 0)
        self._clips = np.frombuffer(self._memory, np.uint8).reshape(count, *reading.shape)
        self._reading = reading

    def __len__(self) -> int:
        return len(self._clips)

    def clips(self, slot: int) -> np.ndarray:
        """uint8 [V, T, h, w, C] of a video; it changes when the slot is used again."""
        return self._clips[slot]

    def offset(self, slot: int) -> int:
        """Bytes before it."""
        return slot * self._reading.nbytes

    def close(self) -> None:
        """Let go of the file; the memory goes with the last array."""
        os.close(self.descriptor)


class Decoder:
    """One decode process; for one caller at a time. It is started on first use.

    timeout_s: after which a decode is abandoned.
    """

    def __init__(self, reading: Reading, slots: Slots, *, timeout_s: float):
        self._reading, self._slots, self._timeout_s = reading, slots, timeout_s
        self._process: subprocess.Popen | None = None
        self._closed = False

    def decode(self, path: str, slot: int) -> Decoded:
        """Decode a local file into a slot. Whatever the file does, it is an answer.

        Raises:
            DecoderError: if no decode process can be started, or after `close`.
        """
        if self._closed:
            raise DecoderError("the decoder has been closed")
        if self._process is None:
            self._start()
        request = {"path": path, "offset": self._slots.offset(slot)}
        start = time.perf_counter()
        try:
            answer = self._ask(request, self._timeout_s)
        except (EOFError, OSError):
            return self._crashed(path, time.perf_counter() - start)
        if answer is None:
            self.kill()
            return Decoded(
                error=f"{path}: decoding took longer than {self._timeout_s:g} s and was abandoned",
                decode_s=time.perf_counter() - start,
            )
        return Decoded(**answer)

    def kill(self) -> None:
        """End the process at once, whatever it does; the next call starts another."""
        if self._process is not None:
            self._connection.close()
            with contextlib.suppress(OSError):
                self._process.kill()
            # One that hangs in a file system can't be waited for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
            self._process = None

    def close(self) -> None:
        """End the process, for good."""
        self._closed = True
        self.kill()

    def _start(self) -> None:
        try:
            self._launch()
            if self._ask(self._reading.to_dict(), START_TIMEOUT_S) is None:
                raise EOFError
        # Too many processes or open files, or no memory for one, are among them.
        except (EOFError, OSError) as error:
            self.kill()
            why = f" ({error})" if str(error) else ""
            raise DecoderError(f"a decode process could not be started{why}") from error

    def _launch(self) -> None:
        self._connection, theirs = Pipe()
        descriptors = theirs.fileno(), self._slots.descriptor
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tpu.decode_worker", *map(str, descriptors)],
                pass_fds=descriptors,
                # Ctrl-C in a terminal is for the job alone.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(os.environ),
            )

    def _ask(self, message: Any, timeout_s: float) -> Any:
        """The answer, or None if there is none in time."""
        self._connection.send_bytes(json.dumps(message).encode())
        if not self._connection.poll(timeout_s):
            return None
        return json.loads(self._connection.recv_bytes())

    def _crashed(self, path: str, seconds: float) -> Decoded:
        process, code = self._process, None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(timeout=5)
        self.kill()
        how = signal.Signals(-code).name if code is not None and code < 0 else f"code {code}"
        # The system kills where memory is short, which passes; what crashes crashes again.
        killed = code == -signal.SIGKILL
        return Decoded(
            error=f"{path}: the decoder died of it ({how})", decode_s=seconds, transient=killed
        )


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Of a decode process: it finds the same modules, and computes in one thread."""
    single = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**inherited, "PYTHONPATH": paths, **dict.fromkeys(single, "1")}
