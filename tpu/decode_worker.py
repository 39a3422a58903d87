"""The process that decodes: one video at a time, into memory that it shares with the job.

    python -m tpu.decode_worker CONNECTION MEMORY     (file descriptors; the job starts it)

The first message says what a video becomes, then each asks for one: {"path", "offset"}. The answer
is {"frames", "duration_s", "decode_s"} with the clips at `offset`, or {"error", "transient"}. When
the job is gone, however it ended, so is this process.
"""

import json
import mmap
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tpu.reading import Reading


def main(argv: list[str]) -> int:
    """Serve until the job hangs up."""
    # The job decides what becomes of these: it was asked to end, not its workers.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    connection, memory = Connection(int(argv[0])), int(argv[1])
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    reading = Reading.from_dict(json.loads(connection.recv_bytes()))
    threading.Thread(target=_listen, args=(connection, requests), daemon=True).start()
    shared = np.frombuffer(mmap.mmap(memory, 0), np.uint8)
    reading.prepare()
    connection.send_bytes(b"{}")
    while True:
        request = requests.get()
        start = request["offset"]
        clips = shared[start : start + reading.nbytes].reshape(reading.shape)
        connection.send_bytes(json.dumps(answer(reading, request["path"], clips)).encode())


def _listen(connection: Connection, requests: "queue.SimpleQueue[dict[str, Any]]") -> None:
    """Pass requests on; a thread of its own notices the end of the job during a decode, too."""
    while True:
        try:
            requests.put(json.loads(connection.recv_bytes()))
        except (EOFError, OSError):
            os._exit(0)


def answer(reading: Reading, path: str, clips: np.ndarray) -> dict[str, Any]:
    """What becomes of one video: its clips are written to `clips`."""
    start = time.perf_counter()
    try:
        frames, duration_s = reading.read(path, clips)
    except ValueError as error:
        return {"error": str(error), "transient": bool(getattr(error, "transient", False))}
    except MemoryError:
        return {"error": f"{path}: its frames don't fit into memory", "transient": False}
    # A decoder that raises what it shouldn't is a bad video's doing, and no reason to end the job.
    except Exception as error:
        text = f"{path}: {type(error).__name__}: {' '.join(str(error).split())}"
        return {"error": text, "transient": isinstance(error, OSError)}
    seconds = time.perf_counter() - start
    return {"frames": frames, "duration_s": duration_s, "decode_s": seconds}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
