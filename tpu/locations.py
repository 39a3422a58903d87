"""Where a file is: a path of this machine, or a URL that fsspec opens (`gs://`, `s3://`, ...).

Only strings are dealt with, but for `filesystem`, the one door to fsspec.
"""

import os
import posixpath
import re
from typing import Any

from videomae_jax.command import one_line

SCHEME = r"[A-Za-z][A-Za-z0-9+.\-]+"
# What makes a location a URL; fsspec chains them: zip://clip.mp4::gs://bucket/clips.zip. Written
# for RE2, too, which looks through the columns of a table.
URL = rf"^(?:{SCHEME}::)*{SCHEME}://"
# What neither --root nor a current directory is put before.
ABSOLUTE = rf"^/|{URL}"
# Before the path, the path, and the rest of a chain.
_PARTS = re.compile(rf"(?P<scheme>{URL})(?P<path>.*?)(?P<chain>::.*)?", re.DOTALL)
LOCAL_SCHEMES = ("file://", "local://")


class LocationError(ValueError):
    """A location that nothing here can open; one line that says what is missing."""


def as_local(location: str) -> str | None:
    """The path of a file of this machine; None for a URL of somewhere else."""
    if location.startswith(LOCAL_SCHEMES):
        return location.partition("://")[2]
    return None if is_url(location) else location


def is_url(location: str) -> bool:
    """Whether fsspec has to open it, `file://` included."""
    return re.match(URL, location) is not None


def suffix_of(location: str) -> str:
    """The suffix of its last name in lower case, as ".mp4"; "" for none."""
    return posixpath.splitext(path_of(location))[1].lower()


def folder_of(location: str) -> str:
    """The folder that a file lies in, of the same kind as the location; absolute where local."""
    local = as_local(location)
    if local is not None:
        return os.path.dirname(os.path.abspath(local))
    return with_path(location, posixpath.dirname(path_of(location)))


def absolute(folder: str) -> str:
    """A folder in the form that says the same wherever a process runs, without a last slash."""
    local = as_local(folder)
    if local is not None:
        return os.path.abspath(local)
    return with_path(folder, path_of(folder).rstrip("/"))


def join(folder: str, path: str) -> str:
    """Where `path` is if it is meant from `folder`; as it is if it is absolute or a URL."""
    if re.match(ABSOLUTE, path):
        return path
    if not is_url(folder):
        return os.path.join(folder, path)
    joined = posixpath.join(path_of(folder), path)
    # Names in buckets are plain strings: nobody there goes up for a "..". But "a//b" is a name.
    if re.search(r"(^|/)\.{1,2}(/|$)", joined):
        joined = posixpath.normpath(joined)
    return with_path(folder, joined)


def filesystem(location: str) -> tuple[Any, str]:
    """fsspec's filesystem for a location, and the path in it.

    Raises:
        LocationError: for a scheme that is unknown, or needs a package that is not installed.
    """
    _check_import(location)
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(location)
    except (ImportError, ValueError) as error:
        for scheme in schemes_of(location):
            check_scheme(scheme)
        raise LocationError(f"{location}: {one_line(error)}") from error


def schemes_of(location: str) -> list[str]:
    """The schemes of a URL: one, or one for each link of a chain."""
    return re.findall(rf"(?:^|::)({SCHEME})(?=::|://)", location)


def check_scheme(scheme: str) -> None:
    """Raise LocationError unless this machine has what opens `scheme`."""
    _check_import(f"{scheme}://")
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        # fsspec names all that it might need; its cause, the package that is not there.
        missing = getattr(error.__cause__, "name", None)
        mend = f"pip install {missing.split('.')[0]}" if missing else one_line(error)
        raise LocationError(f"{scheme}:// needs what is not installed; {mend}") from error
    except ValueError as error:
        raise LocationError(f"{scheme}:// is no scheme that fsspec knows; check it") from error


def path_of(location: str) -> str:
    """The path in a URL, without scheme, query and the rest of a chain; other locations as is."""
    found = _PARTS.fullmatch(location)
    if not found:
        return location
    # Of the web only: elsewhere a question mark is part of a name.
    return found["path"].partition("?")[0] if "http" in found["scheme"] else found["path"]


def with_path(location: str, path: str) -> str:
    """The location with another path in it, and without a query."""
    found = _PARTS.fullmatch(location)
    return f"{found['scheme']}{path}{found['chain'] or ''}" if found else path


def _check_import(location: str) -> None:
    try:
        import fsspec  # noqa: F401
    except ImportError as error:
        mend = "pip install 'videomae-jax[batch]'"
        raise LocationError(f"{location}: needs fsspec; {mend}") from error
