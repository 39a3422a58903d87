"""OUT as a place for whole files, on whatever filesystem it is."""

import contextlib
import os
import posixpath
import uuid
from pathlib import Path
from typing import Any

from tpu.files import retried
from tpu.shards import Shard


class Place:
    """OUT on whatever filesystem it is; whole files only."""

    def __init__(self, filesystem: Any, root: str):
        self.filesystem = filesystem
        self.root = root
        protocol = filesystem.protocol
        self.is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def path(self, *names: str) -> str:
        """Of a file or folder in OUT."""
        return posixpath.join(self.root, *names)

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder of OUT, which need not exist."""
        path = self.path(folder) if folder else self.root
        self.filesystem.invalidate_cache(path)
        try:
            listed = self.filesystem.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in listed)

    def read(self, *names: str) -> bytes:
        """A whole file."""
        return self.filesystem.cat_file(self.path(*names))

    def write(self, content: bytes, *names: str, shard: Shard) -> None:
        """Make or replace a file: it is there whole or not at all, and on the disk afterwards.

        What fails for a passing reason is tried again.
        """
        retried(lambda: self._write(content, *names, shard=shard))

    def _write(self, content: bytes, *names: str, shard: Shard) -> None:
        if not self.is_local:
            # An object appears when all of it has arrived.
            self.filesystem.pipe_file(self.path(*names), content)
            return
        target = Path(self.path(*names))
        partial = Path(self.path("_job", f"tmp-{shard.index}-of-{shard.count}-{uuid.uuid4().hex}"))
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)
        _sync_folder(target.parent)

    def remove(self, *names: str) -> None:
        """Remove a file."""
        self.filesystem.rm_file(self.path(*names))

    def remove_abandoned(self, shard: Shard) -> None:
        """Remove what a killed run of this shard has left half written."""
        mark = f"tmp-{shard.index}-of-{shard.count}-"
        for name in self.names("_job"):
            if name.startswith(mark):
                self.remove("_job", name)


def _sync_folder(folder: Path) -> None:
    # Not all systems can open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
