"""A bucket in memory for the tests, and one that fails as often as it is told."""

import contextlib
from collections.abc import Iterator
from typing import ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem


class FlakyFileSystem(MemoryFileSystem):
    """`flaky://`: the files of `memory://`, behind errors that come first."""

    protocol = "flaky"
    cachable = False
    # What the next calls raise, the first one first.
    errors: ClassVar[list[Exception]] = []
    # How many bytes of a file arrive; None for all.
    arriving: ClassVar[int | None] = None
    calls: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def info(self, path, **kwargs):
        self.calls.append("info")
        if self.errors:
            raise self.errors.pop(0)
        return super().info(path, **kwargs)

    def get_file(self, rpath, lpath, **kwargs):
        self.calls.append("get_file")
        with open(lpath, "wb") as file:
            file.write(self.cat_file(rpath)[: self.arriving])


@contextlib.contextmanager
def memory_files(files: dict[str, bytes]) -> Iterator[None]:
    """Files of `memory://` by path, all gone afterwards; `flaky://` has the same."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    system = fsspec.filesystem("memory")
    system.store.clear()
    FlakyFileSystem.errors, FlakyFileSystem.arriving, FlakyFileSystem.calls = [], None, []
    for path, content in files.items():
        system.pipe_file(path, content)
    try:
        yield
    finally:
        system.store.clear()
        system.pseudo_dirs[:] = [""]
