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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import videomae_jax
from convert import hub, job
from convert.digests import digest_files, sha256
from convert.errors import ConversionError
from convert.recognize import find_layout
from convert.source import WEIGHT_FILES, open_source
from videomae_jax import checkpoint
from videomae_jax.cache_folder import cache_folder

logger = logging.getLogger(__name__)

MEND = "set XDG_CACHE_HOME to another folder, or convert with python -m convert SOURCE OUT"
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def is_source(source: str | os.PathLike) -> bool:
    """Whether `source` is something to convert: a hub id, a weight file, or a folder with one."""
    path = Path(source)
    if path.is_dir():
        return any((path / name).is_file() for name in WEIGHT_FILES)
    return hub.is_hub_id(source) or (path.suffix in WEIGHT_SUFFIXES and path.is_file())


def converted(
    source: str | os.PathLike, *, revision: str | None = None, num_heads: int | None = None
) -> Path:
    """The converted directory for a hub id, folder or weight file; made on first use.

    `num_heads` is what `python -m convert --num-heads` says, for a directory of its own. Processes
    that ask for the same at once wait for the one that makes it. What a user should know before
    trusting the result is logged as a warning when it is made.

    Raises:
        ConversionError: if the source can't be had or converted, or the cache not be written.
    """
    snapshot = hub.fetch(str(source), revision=revision) if hub.is_hub_id(source) else None
    if snapshot is None and revision is not None:
        raise ConversionError(f"{source} is a path: --revision is for ids on the hub")
    path = Path(source) if snapshot is None else snapshot.folder
    overrides = {} if num_heads is None else {"num_attention_heads": num_heads}
    request = job.Request(overrides=overrides, snapshot=snapshot)
    home = cache_home()
    seen = home / "seen" / _sign(path, overrides)
    directory = _remembered(seen, home)
    known = directory is not None
    if directory is None:
        opened = open_source(path)
        files = job.files_read(opened, find_layout(opened), request)
        directory = home / "converted" / _key(digest_files(files), overrides)
    if not _is_whole(directory):
        with _writable(home):
            _make(path, directory, request)
    if not known:
        # What is whole can be used where nothing can be written.
        with contextlib.suppress(OSError):
            _remember(seen, directory.name)
    return directory


def forget_damaged(directory: Path) -> bool:
    """Drop a directory of the cache if its files are no longer what was written.

    False if they are, to the last bit: then what went wrong with it lies elsewhere.

    Raises:
        ConversionError: if the cache can't be written.
    """
    with _writable(cache_home()), _lock(directory):
        if _is_whole(directory, to_the_bit=True):
            return False
        _remove(directory)
        return True


def cache_home() -> Path:
    """Where this package caches.

    Raises:
        ConversionError: if that is the user's home, and there is none.
    """
    try:
        return cache_folder()
    except RuntimeError as error:
        raise ConversionError(f"no home to keep converted checkpoints in; {MEND}") from error


def _make(path: Path, directory: Path, request: job.Request) -> None:
    with _lock(directory):
        if _is_whole(directory):
            return
        _remove(directory)
        name = path if request.snapshot is None else request.snapshot.repo_id
        logger.info("converting %s (once; kept in %s)", name, directory)
        conversion = job.convert(path, request)
        report = conversion.description.conversion
        if _key(report["source"]["files"], request.overrides) != directory.name:
            raise ConversionError(f"{name}: changed while it was converted; try again")
        for warning in report["warnings"]:
            logger.warning("%s", warning)
        job.write(conversion, directory)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Be the only process that makes or removes a directory."""
    from filelock import FileLock

    directory.parent.mkdir(parents=True, exist_ok=True)
    # The system lets go of the lock of a process that was killed.
    with FileLock(directory.with_name(f"{directory.name}.lock")):
        yield


def _remove(directory: Path) -> None:
    """Remove a directory; under its lock."""
    if directory.exists():
        # Renamed first, so that a reader finds all of it or nothing.
        directory.rename(directory.with_name(f".{directory.name}.removed-{uuid.uuid4().hex[:8]}"))
    # Those, too, whose removal was cut short; what is being written has other names.
    for rest in directory.parent.glob(f".{directory.name}.removed-*"):
        shutil.rmtree(rest, ignore_errors=True)


def _is_whole(directory: Path, *, to_the_bit: bool = False) -> bool:
    """Whether a directory is complete, and its files those that its report says were written.

    Their sizes are compared always, their contents where a file is younger than the report, which
    was written after all of them, or `to_the_bit`.
    """
    try:
        description = checkpoint.load_description(directory)
        report = description.conversion
        made = (directory / "conversion.json").stat().st_mtime_ns
        if report["network"]["config"] != description.config.to_dict():
            return False
        for entry in report["written"]:
            file = directory / entry["name"]
            stat = file.stat()
            if stat.st_size != entry["bytes"]:
                return False
            if (to_the_bit or stat.st_mtime_ns > made) and sha256(file) != entry["sha256"]:
                return False
    # A report of any content is valid JSON to the reader of directories.
    except (ValueError, OSError, LookupError, TypeError):
        return False
    return True


def _key(digests: Iterable[Mapping[str, Any]], overrides: Mapping[str, Any]) -> str:
    """What names a content: the files' digests, and what this version makes of them."""
    content: list[Any] = [checkpoint.FORMAT, videomae_jax.__version__, dict(overrides)]
    for digest in digests:
        suffix = Path(digest["name"]).suffix
        # Of the name of a weight file the reader asks no more.
        role = suffix if suffix in WEIGHT_SUFFIXES else digest["name"]
        content.append([role, digest["sha256"]])
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sign(path: Path, overrides: Mapping[str, Any]) -> str:
    """A digest of where the files of a source are, and of their sizes and times."""
    folder = path if path.is_dir() else path.parent
    names = {path} if path.is_file() else set()
    with contextlib.suppress(OSError):
        names |= {file for file in folder.iterdir() if file.suffix == ".json"}
        if path.is_dir():
            names |= {file for file in folder.iterdir() if file.suffix in WEIGHT_SUFFIXES}
    signs = [checkpoint.FORMAT, videomae_jax.__version__, str(dict(overrides)), str(path.resolve())]
    for file in sorted(names):
        with contextlib.suppress(OSError):
            stat = file.stat()
            # The last one, which no program can set, tells of a copy that kept the time.
            marks = (stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns)
            signs.append(f"{file} {file.resolve()} {marks}")
    return hashlib.sha256("\n".join(signs).encode(errors="surrogateescape")).hexdigest()


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
            f"{home}: the converted checkpoint can't be kept there ({error}); {MEND}"
        ) from error
