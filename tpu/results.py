"""OUT: parts that appear whole, a done-manifest, and what is left to do.

    OUT/part-*.parquet (or .jsonl)   rows; a row in a part is done
    OUT/_job/settings.json           what the rows depend on, see `tpu.job.Job`
    OUT/_job/done/part-*.json        the done-manifest: which rows each part holds
    OUT/_job/lock-*                  who writes, see `tpu.lock`

A part has its name only when it is whole, and no row is in two of them, so that OUT can be read at
any moment. The done-manifest only saves reading all parts again: it is made anew where it is
missing, as after a kill between the part and its note. Folders that begin with "_" are passed over
by Spark, pyarrow and pandas.
"""

import datetime
import json
import logging
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tpu.job import BrokenOffError, Job, JobError
from tpu.part_files import read_rows, without_errors, write_part
from tpu.place import Place
from tpu.shards import Shard

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

PART = re.compile(r"part-.*-([0-9]+)-of-([0-9]+)-[0-9a-f]+")
"""The name of a part, without its suffix: when it was written, by which shard."""
ROWS_A_PART = 10_000
SECONDS_A_PART = 60.0


class Results:
    """Rows on their way to OUT; safe to use from several threads.

    `done` is bool [rows of the manifest]: True where OUT holds the row, of the shard; `errors` how
    many of those hold an error. What was added but not yet written counts as neither.
    """

    def __init__(
        self,
        place: Place,
        job: Job,
        schema: "pa.Schema",
        shard: Shard,
        held: Any,
        rows_a_part: int,
        seconds_a_part: float,
    ):
        self._place, self._job, self._schema, self._shard = place, job, schema, shard
        self._held = held
        self._rows_a_part, self._seconds_a_part = rows_a_part, seconds_a_part
        self._lock = threading.Lock()
        self._waiting: dict[int, Mapping[str, Any]] = {}
        # The part that is being written: its name, and its rows by their numbers.
        self._begun: tuple[str, dict[int, Mapping[str, Any]]] | None = None
        self._closed = False
        self._since = time.monotonic()
        self.done = np.zeros(job.rows, bool)
        self.errors = 0
        self._with_errors: list[str] = []
        self._read_done()

    def to_do(self, limit: int | None = None) -> np.ndarray:
        """The shard's rows that are not done, ascending; of the manifest's first `limit`."""
        rows = self._shard.rows(self._job.rows if limit is None else min(limit, self._job.rows))
        return rows[~self.done[rows]]

    def forget_failed(self, limit: int | None = None) -> None:
        """Take rows with an error out of OUT, of the manifest's first `limit`: they are to do.

        Raises:
            JobError: for a part with such rows that may hold other shards' rows, too.
        """
        for name in self._with_errors:
            shard = shard_of(name)
            if shard is None or not shard.is_within(self._shard):
                part = self._place.path(f"{name}.{self._job.format}")
                raise JobError(
                    f"{part} holds failed rows, also of other shards than {self._shard}: say "
                    f"--retry-failed alone, without --shard and --distributed"
                )
        for name in self._with_errors:
            self._forget_failed(name, limit)
        self._with_errors = []

    def _forget_failed(self, name: str, limit: int | None) -> None:
        file, note = f"{name}.{self._job.format}", f"{name}.json"
        content, kept, forgotten = without_errors(
            self._place.read(file), self._job.format, self._job.rows if limit is None else limit
        )
        if not len(forgotten):
            return
        self._held.check()
        # The note goes first: a part without one is read, whatever it holds by then.
        self._place.remove("_job", "done", note)
        if len(kept):
            self._place.write(content, file, shard=self._shard)
            _, errors = read_rows(content, self._job.format)
            self._note(name, kept, errors=errors, size=len(content))
        else:
            self._place.remove(file)
        self.done[forgotten] = False
        self.errors -= len(forgotten)

    def add(self, row: Mapping[str, Any]) -> bool:
        """Take a result, with all columns of the schema; it is written soon, or at the end.

        A row that is there already is passed over, and False is said: of two answers the first
        counts. So is one that comes after `close`.
        """
        number = int(row["row"])
        with self._lock:
            begun = {} if self._begun is None else self._begun[1]
            if self._closed or self.done[number] or number in self._waiting or number in begun:
                return False
            self._waiting[number] = row
            full = len(self._waiting) >= self._rows_a_part
        if full:
            self.flush()
        else:
            self.flush_old()
        return True

    def flush_old(self) -> None:
        """Write what has waited for long; call it now and then."""
        if time.monotonic() - self._since >= self._seconds_a_part:
            self.flush()

    def flush(self) -> None:
        """Write everything that waits, as one part; before it, one whose writing has failed.

        Raises:
            BrokenOffError: if that can't be done.
        """
        with self._lock:
            self._since = time.monotonic()
            while self._begun is not None or self._waiting:
                if self._begun is None:
                    self._begun = self._new_name(), self._waiting
                    self._waiting = {}
                # One that failed may have arrived all the same: the same rows have the same name.
                self._held.check()
                self._write_part(*self._begun)
                self._begun = None

    def close(self) -> None:
        """Write everything that waits, and take nothing more: others may write from now on."""
        with self._lock:
            self._closed = True
        self.flush()

    def _write_part(self, name: str, waiting: dict[int, Mapping[str, Any]]) -> None:
        numbers = np.array(sorted(waiting), np.int64)
        rows = [waiting[number] for number in numbers.tolist()]
        failed = sum(row["error"] is not None for row in rows)
        content = write_part(rows, self._schema, self._job.format)
        try:
            self._place.write(content, f"{name}.{self._job.format}", shard=self._shard)
            self._note(name, numbers, errors=failed, size=len(content))
        except OSError as error:
            raise BrokenOffError(f"OUT can't be written to any more ({error})") from error
        self.done[numbers] = True
        self.errors += failed

    def _new_name(self) -> str:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S")
        shard = f"{self._shard.index:05d}-of-{self._shard.count:05d}"
        return f"part-{now}-{shard}-{uuid.uuid4().hex[:8]}"

    def _note(self, name: str, numbers: np.ndarray, *, errors: int, size: int) -> None:
        note = {
            "part": f"{name}.{self._job.format}",
            "rows": intervals(numbers),
            "count": len(numbers),
            "errors": errors,
            "bytes": size,
        }
        content = json.dumps(note).encode()
        self._place.write(content, "_job", "done", f"{name}.json", shard=self._shard)

    def _read_done(self) -> None:
        """What earlier runs have done: parts by their notes, and parts whose note is missing."""
        suffix = f".{self._job.format}"
        # Notes before parts: other shards go on writing, first a part, then its note.
        notes = {name.removesuffix(".json") for name in self._place.names("_job/done")}
        parts = {
            name.removesuffix(suffix)
            for name in self._place.names()
            if name.startswith("part-") and name.endswith(suffix)
        }
        notes, parts = self._own(notes), self._own(parts)
        for name in sorted(notes - parts):
            # Somebody has removed the part, who wants its rows again.
            logger.warning("%s%s is gone: its rows are done again", name, suffix)
            self._place.remove("_job", "done", f"{name}.json")
        for name, note in self._notes(sorted(notes & parts)):
            if note is None:
                parts.discard(name)
                self._adopt(name, suffix)
                continue
            self._count(name, note["errors"])
            for start, stop in note["rows"]:
                self._take(name, slice(start, stop))
        for name in sorted(parts - notes):
            self._adopt(name, suffix)

    def _own(self, names: set[str]) -> set[str]:
        """Those that may hold rows of the shard; the others' writers may be at them now."""
        shards = {name: shard_of(name) for name in names}
        return {name for name, shard in shards.items() if not shard or shard.overlaps(self._shard)}

    def _count(self, name: str, errors: int) -> None:
        self.errors += errors
        if errors:
            self._with_errors.append(name)

    def _notes(self, names: list[str]) -> Iterator[tuple[str, dict[str, Any] | None]]:
        paths = [self._place.path("_job", "done", f"{name}.json") for name in names]
        contents = self._place.filesystem.cat(paths) if paths else {}
        for name, path in zip(names, paths, strict=True):
            # Of one path some filesystems give the content alone.
            content = contents[path] if isinstance(contents, dict) else contents
            try:
                note = json.loads(content)
                yield name, note if {"rows", "errors"} <= set(note) else None
            except (ValueError, TypeError):
                yield name, None

    def _adopt(self, name: str, suffix: str) -> None:
        """Note a part that a killed run has written and not noted; or another run just now."""
        content = self._place.read(name + suffix)
        try:
            numbers, errors = read_rows(content, self._job.format)
        except ValueError as error:
            raise JobError(f"{self._place.path(name + suffix)} is damaged ({error}); remove it and "
                           f"run again: its rows are done again") from error  # fmt: skip
        self._take(name, numbers)
        self._note(name, np.sort(numbers), errors=errors, size=len(content))
        self._count(name, errors)

    def _take(self, name: str, rows: Any) -> None:
        if self.done[rows].any():
            raise JobError(
                f"{self._place.path(name)} holds rows that another part holds, too; remove it and "
                f"run again"
            )
        self.done[rows] = True


def shard_of(name: str) -> Shard | None:
    """Whose rows are in a part; None where its name doesn't tell."""
    found = PART.fullmatch(name)
    try:
        return Shard(int(found[1]), int(found[2])) if found else None
    except ValueError:
        return None


def intervals(numbers: np.ndarray) -> list[list[int]]:
    """Ascending numbers as [start, stop] pairs, stop not included."""
    if not len(numbers):
        return []
    ends = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.concatenate([[0], ends + 1])]
    stops = numbers[np.concatenate([ends, [len(numbers) - 1]])] + 1
    return [[int(start), int(stop)] for start, stop in zip(starts, stops, strict=True)]
