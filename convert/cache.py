"""Checkpoints for PyTorch, converted on first use and kept: what `videomae_jax.load` falls back on.

    $XDG_CACHE_HOME/videomae_jax/converted/KEY   the converted directory for one content
    $XDG_CACHE_HOME/videomae_jax/seen/SIGN       the KEY of files with these paths, sizes and times

KEY is a digest of the content of every file that conversion reads, so that it is the same wherever
they lie. To look that up without reading gigabytes again, SIGN stands for the files as they are.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import videomae_jax
from convert import hub, job
from convert.digests import digest_files
from convert.errors import ConversionError
from convert.recognize import find_layout
from convert.source import WEIGHT_FILES, open_source
from videomae_jax import checkpoint

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def is_source(source: str | os.PathLike) -> bool:
    """Whether `source` is something to convert: a hub id, a weight file, or a folder with one."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).is_file() for name in WEIGHT_FILES)
    return hub.is_hub_id(source) or (path.suffix in WEIGHT_SUFFIXES and path.is_file())


def converted(source: str | os.PathLike, *, revision: str | None = None) -> Path:
    """The converted directory for a hub id, folder or weight file; made on first use.

    Processes that ask for the same at once wait for the one that makes it. What a user should know
    before trusting the result is logged as a warning when it is made.

    Raises:
        ConversionError: if the source can't be had or converted, or the cache not be written.
    """
    snapshot = hub.fetch(str(source), revision=revision) if hub.is_hub_id(source) else None
    if snapshot is None and revision is not None:
        raise ConversionError(f"{source} is a path: --revision is for ids on the hub")
    path = Path(source) if snapshot is None else snapshot.folder
    home = cache_home()
    seen = home / "seen" / _sign(path)
    directory = _remembered(seen, home)
    if directory is None:
        opened = open_source(path)
        files = job.files_read(opened, find_layout(opened), job.Request())
        directory = home / "converted" / _key(digest_files(files))
    if not _is_complete(directory):
        with _writable(home):
            _make(path, directory, snapshot)
            _remember(seen, directory.name)
    return directory


def forget(directory: Path) -> None:
    """Drop a directory of the cache that turned out to be damaged."""
    # Renamed first, so that a reader finds all of it or nothing.
    with contextlib.suppress(OSError):
        doomed = directory.rename(directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}"))
        shutil.rmtree(doomed, ignore_errors=True)


def cache_home() -> Path:
    """Where this package caches, by the XDG specification: a relative path counts as unset."""
    said = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(said) if os.path.isabs(said) else Path.home() / ".cache"
    return base / "videomae_jax"


def _make(path: Path, directory: Path, snapshot: hub.Snapshot | None) -> None:
    from filelock import FileLock

    directory.parent.mkdir(parents=True, exist_ok=True)
    # The system lets go of the lock of a process that was killed.
    with FileLock(directory.with_name(f"{directory.name}.lock")):
        if _is_complete(directory):
            return
        forget(directory)
        name = path if snapshot is None else snapshot.repo_id
        logger.info("converting %s (once; kept in %s)", name, directory)
        conversion = job.convert(path, job.Request(snapshot=snapshot))
        for warning in conversion.description.conversion["warnings"]:
            logger.warning("%s", warning)
        job.write(conversion, directory)


def _is_complete(directory: Path) -> bool:
    try:
        checkpoint.load_description(directory)
    except checkpoint.CheckpointError:
        return False
    return True


def _key(digests: Iterable[dict[str, Any]]) -> str:
    """What names a content: the files' digests, and what this version makes of them."""
    content = [checkpoint.FORMAT, videomae_jax.__version__, *digests]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sign(path: Path) -> str:
    """A digest of where the files of a source are, and of their sizes and times."""
    folder = path if path.is_dir() else path.parent
    names = {path} if path.is_file() else set()
    with contextlib.suppress(OSError):
        names |= {file for file in folder.iterdir() if file.suffix == ".json"}
        if path.is_dir():
            names |= {file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES}
    signs = [checkpoint.FORMAT, videomae_jax.__version__, str(path.resolve())]
    for file in sorted(names):
        with contextlib.suppress(OSError):
            stat = file.stat()
            signs.append(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return hashlib.sha256("\n".join(signs).encode()).hexdigest()


def _remembered(seen: Path, home: Path) -> Path | None:
    try:
        key = seen.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    directory = home / "converted" / key
    return directory if len(key) == 64 and key.isalnum() and directory.is_dir() else None


def _remember(seen: Path, key: str) -> None:
    seen.parent.mkdir(parents=True, exist_ok=True)
    partial = seen.with_name(f".{seen.name}.{uuid.uuid4().hex[:8]}")
    partial.write_text(key, encoding="ascii")
    partial.rename(seen)


@contextlib.contextmanager
def _writable(home: Path):
    """Say which variable names another place, if this one can't be written to."""
    try:
        yield
    except (OSError, checkpoint.CheckpointError) as error:
        raise ConversionError(
            f"{home}: the converted checkpoint can't be kept there ({error}); set XDG_CACHE_HOME "
            f"to another folder, or convert with python -m convert SOURCE OUT"
        ) from error
