"""sha256 of files, counted on another core while a conversion goes on."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

CHUNK = 1 << 24
MOST_THREADS = 4


def sha256(path: Path, stop: list[bool] | None = None) -> str:
    """The digest of a file's content, in hexadecimal; "" if `stop` fills meanwhile."""
    digest, buffer = hashlib.sha256(), bytearray(CHUNK)
    chunk = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            if stop:
                return ""
            digest.update(chunk[:size])
    return digest.hexdigest()


def digest_files(paths: Iterable[Path], *, relative_to: Path | None = None) -> list[dict[str, Any]]:
    """{"name", "bytes", "sha256"} of each file; names below a folder, or bare ones."""
    paths = list(paths)
    with ThreadPoolExecutor(min(os.cpu_count() or 1, MOST_THREADS)) as pool:
        digests = list(pool.map(sha256, paths))
    return [
        {
            "name": path.name if relative_to is None else path.relative_to(relative_to).as_posix(),
            "bytes": path.stat().st_size,
            "sha256": digest,
        }
        for path, digest in zip(paths, digests, strict=True)
    ]


class Digests:
    """Digests of files in the background, between entering and leaving."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = tuple(dict.fromkeys(paths))
        self._stop: list[bool] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._digests: list[Future[str]] = []

    def __enter__(self) -> "Digests":
        self._digests = [self._pool.submit(sha256, path, self._stop) for path in self._paths]
        return self

    def __exit__(self, *error: object) -> None:
        # A conversion that failed waits for no digest.
        self._stop.append(True)
        self._pool.shutdown(cancel_futures=True)

    def results(self) -> list[dict[str, Any]]:
        """{"name", "bytes", "sha256"} of each file, in order; waits for the last."""
        return [
            {"name": path.name, "bytes": path.stat().st_size, "sha256": digest.result()}
            for path, digest in zip(self._paths, self._digests, strict=True)
        ]
