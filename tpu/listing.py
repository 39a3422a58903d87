"""A folder or a glob -> the files that it stands for, sorted, here or in a bucket."""

import itertools
import os
import re
from collections.abc import Container, Iterator
from typing import Any

from tpu.locations import as_local, filesystem, join, path_of, suffix_of, with_path
from videomae_jax.containers import VIDEO_SUFFIXES

MAGIC = re.compile(r"[*?[]")
# What stands for many names in a glob, and the expression for it.
WILDCARDS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}
# Names are handed to Arrow in portions, so that never all of them are Python strings.
PORTION = 50_000


def is_glob(location: str) -> bool:
    """Whether there is something in it that stands for many names."""
    return MAGIC.search(path_of(location)) is not None


def files_in(folder: str, suffixes: Container[str]) -> Any:
    """The files below a folder that have one of the suffixes: a sorted Arrow array of strings.

    Each is written as the folder is, with what leads from there to the file. Names that begin with
    a dot are left out; links are followed.
    """
    names = _below(folder)
    return _sorted(join(folder, name) for name in names if suffix_of(name) in suffixes)


def files_like(pattern: str) -> Any:
    """The files that match a glob, as `files_in`; `**` stands for any number of folders.

    Of a pattern that names no suffix, as `clips/*`, only those that have a video's.
    """
    folder = folder_of_glob(pattern)
    rest = path_of(pattern)[len(path_of(folder)) :]
    if as_local(pattern) is None:
        # A bucket may know a quicker way than to list the folder.
        system, remote = filesystem(pattern)
        names = _shown(system.glob(remote), filesystem(folder)[1])
        system.invalidate_cache()
    else:
        matches = re.compile(_expression(rest), re.DOTALL).fullmatch
        depth = None if "**" in rest else rest.count("/") + 1
        names = (name for name in _below(folder, depth) if matches(name))
    if suffix_of(rest) in ("", ".*"):
        names = (name for name in names if suffix_of(name) in VIDEO_SUFFIXES)
    return _sorted(join(folder, name) for name in names)


def folder_of_glob(pattern: str) -> str:
    """The folder that all files of a glob lie in: what stands before the names with wildcards."""
    path = path_of(pattern)
    return with_path(pattern, path[: MAGIC.split(path, maxsplit=1)[0].rfind("/") + 1])


def _expression(pattern: str) -> str:
    """The regular expression of a glob."""
    expression = ""
    for part in re.split(r"(\*\*/|\*+|\?|\[!?\]?[^\]/]*\])", pattern):
        if part.startswith("[") and part.endswith("]"):
            inside = part[1:-1].replace("\\", "\\\\").replace("[", "\\[")
            expression += f"[{re.sub('^!', '^', inside)}]"
        else:
            expression += WILDCARDS.get(part) or re.escape(part)
    return expression


def _sorted(names: Iterator[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    # Large: all names together may be more than the 2 GiB that a plain array of strings holds.
    kind = pa.large_string()
    portions = iter(lambda: list(itertools.islice(names, PORTION)), [])
    whole = pa.chunked_array([pa.array(each, kind) for each in portions], kind).combine_chunks()
    # By bytes of UTF-8, which is the order of code points, whatever the machine's language.
    return whole.take(pc.array_sort_indices(whole))


def _below(folder: str, depth: int | None = None) -> Iterator[str]:
    """The files below a folder, at most `depth` names deep, as they are named from there."""
    local = as_local(folder)
    if local is not None:
        return _walk(local, "", depth, ())
    system, path = filesystem(folder)
    found = system.find(path)
    # The listing of millions of files would stay in memory for good.
    system.invalidate_cache()
    return _shown(found, path)


def _shown(names: list[str], folder: str) -> Iterator[str]:
    """Names in a filesystem as they are from a folder there, without the hidden ones."""
    folder = folder.rstrip("/")
    for name in names:
        name = name.removeprefix(folder).lstrip("/")
        if not name.startswith(".") and "/." not in name:
            yield name


def _walk(
    folder: str, prefix: str, depth: int | None, above: tuple[tuple[int, int], ...]
) -> Iterator[str]:
    """As `_below`, of a folder here; `above` are the folders on the way, as device and inode."""
    here = os.stat(folder or ".")
    above = (*above, (here.st_dev, here.st_ino))
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            name = prefix + entry.name
            if not entry.is_dir():
                yield name
            elif (depth is None or depth > 1) and not _leads_up(entry, above):
                deeper = None if depth is None else depth - 1
                yield from _walk(os.path.join(folder, entry.name), f"{name}/", deeper, above)


def _leads_up(entry: os.DirEntry, above: tuple[tuple[int, int], ...]) -> bool:
    """Whether it is a link to a folder that it lies in: there would be no end."""
    if not entry.is_symlink():
        return False
    target = entry.stat()
    return (target.st_dev, target.st_ino) in above
