"""Compiled programs, kept on the disk from one run of a command to the next.

    $XDG_CACHE_HOME/videomae_jax/compiled/KEY/    what JAX's persistent compilation cache writes

JAX looks a program up by its text, the versions of jaxlib and of the platform, XLA's flags and the
kind of device. KEY stands for what that leaves out: the code of this package (of an operation with
a partitioning of its own only the name is in the text), all libraries that compile, and the
instruction sets of the processor (machines that differ may share a home).
"""

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from videomae_jax.cache_folder import cache_folder

logger = logging.getLogger(__name__)

LARGEST_CACHE = 2**30
"""Bytes of all programs; what was not used for the longest time goes first."""

COMPILERS = """
    flax jax jaxlib libtpu numpy jax-cuda12-pjrt jax-cuda13-pjrt jax-cuda12-plugin
    jax-cuda13-plugin jax-rocm7-pjrt jax-rocm7-plugin nvidia-cudnn-cu12 nvidia-cudnn-cu13
""".split()
"""Distributions whose versions are part of KEY, where they are installed."""

TROUBLE = "Error (reading|writing) persistent compilation cache entry"
"""How JAX's warnings of an entry that is damaged or can't be kept begin."""


@contextlib.contextmanager
def use_compile_cache() -> Iterator[None]:
    """Keep what is compiled meanwhile, and find what earlier runs have kept. For commands.

    What is set before, by `JAX_COMPILATION_CACHE_DIR` or `jax.config`, is left as it is.
    A cache that can't be used costs nothing but one warning in the log; damaged programs are
    compiled again, and dropped. Settings of JAX and the display of warnings are those of the whole
    process, and are put back at the end.
    """
    import jax

    # JAX makes the attributes of its settings as it goes.
    config: Any = jax.config
    said = config.jax_compilation_cache_dir is not None
    if said or not config.jax_enable_compilation_cache:
        yield
        return
    try:
        folder = cache_folder() / "compiled" / cache_key()
        _make_private(folder)
    except (OSError, RuntimeError) as error:
        _warn(error)
        yield
        return
    drop_oldest(folder.parent, LARGEST_CACHE)
    complaints: list[str] = []
    try:
        with _settings(folder), _collected(complaints):
            yield
    finally:
        if complaints:
            # JAX replaces no entry, not even a damaged one: the next run finds none.
            shutil.rmtree(folder, ignore_errors=True)
        if any(complaint.startswith("Error writing") for complaint in complaints):
            _warn(complaints[-1])


def cache_key() -> str:
    """A digest of what decides about a compiled program beside its text."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)} {file.stat().st_size}\n".encode())
        digest.update(file.read_bytes())
    for name in COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    digest.update("\n".join(_processor()).encode())
    return digest.hexdigest()[:32]


def _processor() -> Iterable[str]:
    """What tells processors apart that can't run each other's programs."""
    yield f"{platform.machine()} {platform.processor()}"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            # The first core stands for all; reading on takes longer the more there are.
            if not line.strip():
                break
            if line.partition(":")[0].strip() in ("model name", "flags", "Features", "CPU part"):
                yield line


def _make_private(folder: Path) -> None:
    """Make the folder, for this user alone: who can write to it can run code here.

    Raises:
        OSError: if it can't be made, or used by others.
    """
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    for path in (folder.parent, folder):
        path.mkdir(mode=0o700, exist_ok=True)
        stat = path.stat()
        if hasattr(os, "getuid") and (stat.st_uid != os.getuid() or stat.st_mode & 0o022):
            raise PermissionError(f"others can write to {path}")


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(folder),
        # All programs of a command, however quickly compiled.
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    # JAX looks at settings once, and would go on with what it has found.
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


@contextlib.contextmanager
def _collected(complaints: list[str]) -> Iterator[None]:
    """What JAX warns of about its cache goes to the list, not to the terminal."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=TROUBLE)
        show = warnings.showwarning

        def collect(message: Warning | str, *rest: Any, **more: Any) -> None:
            if re.match(TROUBLE, str(message)):
                complaints.append(str(message))
            else:
                show(message, *rest, **more)

        warnings.showwarning = collect
        yield


def drop_oldest(folder: Path, most_bytes: int) -> None:
    """Remove files, those that were not used for the longest time first, down to a size."""
    files = []
    for path in folder.rglob("*"):
        # Another process may do the same.
        with contextlib.suppress(OSError):
            if path.is_file():
                stat = path.stat()
                # The system notes reading once a day, or never.
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= most_bytes:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
            path.parent.rmdir()


def _warn(reason: object) -> None:
    logger.warning(
        "compiled programs can't be kept (%s); every start compiles anew: set XDG_CACHE_HOME to "
        "a folder of yours, or say --no-compile-cache",
        reason,
    )
