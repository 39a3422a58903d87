"""Files and directories that are there whole or not at all.

What is being written lies beside its place under a name of its own, `.NAME.HOST-PID-xxxxxxxx`, and
is renamed when it is whole. A process that was killed leaves that behind; the next one that writes
to the same place on the same machine removes it. So it is with folders for a while.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """A directory that can't be read or written; one line that names it and the mend."""


@contextlib.contextmanager
def new_directory(directory: str | os.PathLike) -> Iterator[Path]:
    """A temporary sibling, renamed to `directory` on leaving and removed if the body raises.

    Raises:
        CheckpointError: if `directory` exists or its parent can't be written to.
    """
    with _sibling(Path(directory)) as folder:
        try:
            folder.mkdir()
        except OSError as error:
            raise CheckpointError(f"{directory}: can't be made ({error.strerror})") from error
        yield folder


@contextlib.contextmanager
def new_file(file: str | os.PathLike) -> Iterator[Path]:
    """The same for a file, which the body makes; the temporary one has its suffix.

    Raises:
        CheckpointError: if `file` exists or its parent can't be written to.
    """
    with _sibling(Path(file), suffix=Path(file).suffix) as sibling:
        yield sibling


@contextlib.contextmanager
def passing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder for a while: a temporary sibling of `path`, removed on leaving with what is in it.

    Raises:
        OSError: if it can't be made.
    """
    _remove_abandoned(Path(path))
    folder = _own_name(Path(path))
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        _remove(folder)


def refuse_existing(path: str | os.PathLike) -> None:
    """Raise CheckpointError if anything stands at `path`."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise CheckpointError(f"{path} exists and is left as it is; name a new directory")


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file and see it to the disk."""
    partial = path.with_name(f".{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


@contextlib.contextmanager
def _sibling(path: Path, suffix: str = "") -> Iterator[Path]:
    refuse_existing(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be made ({error.strerror})") from error
    _remove_abandoned(path)
    sibling = _own_name(path, suffix)
    try:
        yield sibling
        refuse_existing(path)
        sibling.rename(path)
    except BaseException:
        _remove(sibling)
        raise


def _own_name(path: Path, suffix: str = "") -> Path:
    """A name beside `path` that says whose it is."""
    return path.with_name(f".{path.name}.{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}{suffix}")


def _host() -> str:
    """This machine's name as part of a file's: letters and digits."""
    return re.sub(r"\W", "", socket.gethostname())[:40]


def _remove_abandoned(path: Path) -> None:
    """Remove what processes of this machine that are gone have left of writing to `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.{_host()}-([0-9]+)-[0-9a-f]{{8}}(\.\w+)?")
    with contextlib.suppress(OSError):
        for sibling in path.parent.iterdir():
            found = pattern.fullmatch(sibling.name)
            if found and not is_running(int(found[1])):
                _remove(sibling)


def is_running(process: int) -> bool:
    """Whether a process of this machine with that number is there; True where it can't be known."""
    if os.name != "posix":
        # Asking would end the process there.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    # It belongs to somebody else.
    except (OSError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
