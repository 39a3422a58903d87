"""One writer a shard: the second run on the same OUT is refused.

On a local disk the system holds the lock, and lets go of it however the process ends. In a bucket
the lock is an object with a time in it, renewed every few seconds. Who finds one that may be a dead
run's waits: when it is renewed it is refused, when its time is old it goes on.
"""

import contextlib
import datetime
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tpu.job import BrokenOffError, JobError
from tpu.shards import Shard
from videomae_jax.writing import is_running

logger = logging.getLogger(__name__)

RENEWED_EVERY = 15.0
"""Seconds."""
GONE_AFTER = 90.0
"""Seconds without a sign of life after which the writer in a bucket counts as gone."""

LOCK = re.compile(r"lock-([0-9]+)-of-([0-9]+)(\.json)?")


class LostLock(BrokenOffError):
    """Another run has taken over: nothing more may be written."""


class Held:
    """A lock that is held; `check` before anything is written."""

    def check(self) -> None:
        """Raise LostLock where another run has taken over meanwhile, or may have."""


@contextlib.contextmanager
def writer_lock(filesystem: Any, folder: str, shard: Shard) -> Iterator[Held]:
    """Hold the shard's lock in `folder` (of an fsspec filesystem), which exists.

    Raises:
        JobError: if a run that is alive holds it, or that of a shard with common rows.
    """
    if "file" in _protocols(filesystem):
        with _local_lock(Path(folder), shard):
            yield Held()
    else:
        with _lease(filesystem, folder, shard) as held:
            yield held


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _name(shard: Shard) -> str:
    return f"lock-{shard.index}-of-{shard.count}"


def _shard(name: str) -> Shard | None:
    found = LOCK.fullmatch(name)
    return Shard(int(found[1]), int(found[2])) if found else None


def _refusal(owner: str) -> JobError:
    return JobError(f"another run writes to this OUT ({owner}); wait for it, or end it first")


# On a local disk.


@contextlib.contextmanager
def _local_lock(folder: Path, shard: Shard) -> Iterator[None]:
    from filelock import FileLock, Timeout

    own = folder / _name(shard)
    # Two that begin at the same moment look at each other's locks one after the other.
    with FileLock(folder / "lock-door"):
        for path in sorted(folder.iterdir()):
            other = _shard(path.name)
            if other is None or not other.overlaps(shard):
                continue
            try:
                with FileLock(path, timeout=0):
                    pass
            except Timeout:
                raise _refusal(_owner_of(path)) from None
        lock = FileLock(own, timeout=0)
        lock.acquire()
        owner = own.with_name(f"owner-{_name(shard)}.json")
        owner.write_text(json.dumps(_myself()), encoding="utf-8")
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner_of(lock: Path) -> str:
    try:
        said = json.loads(lock.with_name(f"owner-{lock.name}.json").read_text(encoding="utf-8"))
        return _in_words(said)
    except (OSError, ValueError):
        return f"it holds {lock}"


def _myself() -> dict[str, Any]:
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "process": os.getpid(), "since": since}


def _in_words(said: dict[str, Any]) -> str:
    return f"process {said.get('process')} on {said.get('host')}, since {said.get('since')}"


# In a bucket.


@contextlib.contextmanager
def _lease(filesystem: Any, folder: str, shard: Shard) -> Iterator[Held]:
    path = f"{folder}/{_name(shard)}.json"
    said = {**_myself(), "token": uuid.uuid4().hex}
    for other in _overlapping(filesystem, folder, shard):
        _refuse_living(filesystem, other)
    begun = time.monotonic()
    _renew(filesystem, path, said)
    # Of two that began at the same moment each sees the other's now; at least one gives up.
    for other in _overlapping(filesystem, folder, shard):
        found = _read(filesystem, other) or said
        if found["token"] != said["token"] and _age(found) < GONE_AFTER and not _ended(found):
            _let_go(filesystem, path, said["token"])
            raise _refusal(_in_words(found))
    lease = Lease(filesystem, path, said, begun=begun)
    thread = threading.Thread(target=lease.keep, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.done.set()
        thread.join(timeout=2 * RENEWED_EVERY)
        _let_go(filesystem, path, said["token"])


class Lease(Held):
    """What is held in a bucket; `lost` is set where another run has taken over, or must have.

    Until `until`, by `time.monotonic`, nobody may think that this run is gone.
    """

    def __init__(self, filesystem: Any, path: str, said: dict[str, Any], *, begun: float):
        self._filesystem, self._path, self._said = filesystem, path, said
        self.until = begun + GONE_AFTER - 2 * RENEWED_EVERY
        self.lost, self.done = threading.Event(), threading.Event()

    def check(self) -> None:
        """As `Held`; looks first where the process may have been stopped for long, just now."""
        if not self.lost.is_set() and time.monotonic() > self.until:
            self.renew()
        if self.lost.is_set():
            raise LostLock("another run has taken over, after this one could not reach OUT")

    def renew(self) -> None:
        """Give a sign of life, or set `lost`."""
        now = time.monotonic()
        try:
            found = _read(self._filesystem, self._path)
            # Where it is gone, another run has taken over and is done already.
            if found is None or found.get("token") != self._said["token"]:
                self.lost.set()
                return
            _renew(self._filesystem, self._path, self._said)
            self.until = now + GONE_AFTER - 2 * RENEWED_EVERY
        # The network: the next attempt may do, until others must think this run gone.
        except Exception:
            if now > self.until:
                self.lost.set()

    def keep(self) -> None:
        """Renew it again and again, until `done`."""
        while not self.done.wait(RENEWED_EVERY) and not self.lost.is_set():
            self.renew()


def _overlapping(filesystem: Any, folder: str, shard: Shard) -> list[str]:
    """The locks that are there of this shard, or of shards with common rows."""
    filesystem.invalidate_cache(folder)
    found = []
    for path in filesystem.ls(folder, detail=False):
        other = _shard(path.rpartition("/")[2])
        if other is not None and other.overlaps(shard):
            found.append(path)
    return found


def _refuse_living(filesystem: Any, path: str) -> None:
    """Return when whoever holds the lock is gone, for which it may have to wait."""
    first = said = _read(filesystem, path)
    if first is not None and not _ended(first) and _age(first) < GONE_AFTER:
        logger.warning(
            "waiting to see whether another run still writes to this OUT (%s), at most %.0f s",
            _in_words(first),
            GONE_AFTER - _age(first),
        )
    while said is not None and first is not None and not _ended(said) and _age(said) < GONE_AFTER:
        if said != first:
            raise _refusal(_in_words(said))
        time.sleep(min(1.0, RENEWED_EVERY / 5))
        said = _read(filesystem, path)


def _age(said: dict[str, Any]) -> float:
    """Seconds since the last sign of life."""
    return time.time() - float(said.get("seen", 0))


def _ended(said: dict[str, Any]) -> bool:
    """Whether it was a process of this machine that is there no more."""
    here = said.get("host") == socket.gethostname()
    return here and not is_running(int(said.get("process", 0)))


def _read(filesystem: Any, path: str) -> dict[str, Any] | None:
    try:
        said = json.loads(filesystem.cat_file(path))
    except (FileNotFoundError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def _renew(filesystem: Any, path: str, said: dict[str, Any]) -> None:
    filesystem.pipe_file(path, json.dumps({**said, "seen": time.time()}).encode())


def _let_go(filesystem: Any, path: str, token: str) -> None:
    # What can't be removed is old soon.
    with contextlib.suppress(Exception):
        if (_read(filesystem, path) or {}).get("token") == token:
            filesystem.rm_file(path)
