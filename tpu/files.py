"""A video where libav can read it, and what is tried again when that fails.

`local_copy` brings one file here for as long as it is needed; its errors are those of the
filesystem, which `is_transient` sorts and `retried` acts on.
"""

import contextlib
import errno
import random
import re
import socket
import ssl
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tpu.locations import as_local, filesystem, suffix_of
from videomae_jax.decoders import TRANSIENT
from videomae_jax.writing import passing_folder

Result = TypeVar("Result")

# What may be otherwise in a second: networks, a busy file server, others who fill memory or disk.
# EIO is one, too, unless there is better evidence: see `is_transient`.
TRANSIENT_ERRNOS = (TRANSIENT - {errno.EIO}) | {errno.EDQUOT, errno.ENOLCK, errno.ENOSPC}
# Request timeout, too early, too many requests; and all from 500 on, the server's own trouble.
TRANSIENT_STATUSES = frozenset({408, 425, 429})
LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ssl.SSLCertVerificationError,
)
PASSING = (ConnectionError, TimeoutError, ssl.SSLError)
# Libraries of filesystems have errors of their own. None is imported to look: a library that is
# not there raises nothing. A name stands for the classes derived from it as well.
PASSING_NAMES = {
    "aiohttp": "ClientConnectionError ClientPayloadError",
    "azure": "ServiceRequestError ServiceResponseError IncompleteReadError",
    "botocore": "HTTPClientError ResponseStreamingError IncompleteReadError",
    "fsspec": "FSTimeoutError",
    "gcsfs": "ChecksumError",
    "google": "TransportError RetryError",
    "http": "HTTPException",
    "httpcore": "NetworkError ProtocolError TimeoutException",
    "httpx": "TransportError",
    "paramiko": "SSHException",
    "requests": "ChunkedEncodingError ConnectionError Timeout",
    "urllib3": "IncompleteRead MaxRetryError ProtocolError TimeoutError",
}


class ShortReadError(OSError):
    """A download that ended before the size that the filesystem tells; it may go well again."""


@contextlib.contextmanager
def download_folder() -> Iterator[Path]:
    """A folder for downloads in the system's temporary one (`TMPDIR`), removed on leaving.

    Those of killed processes of this machine are removed first.

    Raises:
        OSError: if it can't be made.
    """
    with passing_folder(Path(tempfile.gettempdir()) / "videomae-downloads") as folder:
        yield folder


@contextlib.contextmanager
def local_copy(location: str, folder: Path) -> Iterator[Path]:
    """A file of this machine with a video: itself if it is one, else a download into `folder`.

    A download has a name of its own with the suffix kept, and is removed on leaving. Whether a
    local file exists is not looked at.

    Raises:
        ShortReadError: (an OSError) for a download that is shorter than its source.
        LocationError: for a scheme that nothing here opens.
        Exception: whatever the filesystem raises, FileNotFoundError if there is no such file.
    """
    local = as_local(location)
    if local is not None:
        yield Path(local)
        return
    suffix = suffix_of(location)
    # A suffix of a bucket's object may hold anything.
    name = uuid.uuid4().hex + (suffix if re.fullmatch(r"\.\w{1,10}", suffix) else "")
    copy = folder / name
    try:
        _download(location, copy)
        yield copy
    finally:
        with contextlib.suppress(OSError):
            copy.unlink()


def _download(location: str, copy: Path) -> None:
    system, path = filesystem(location)
    entry = system.info(path)
    if entry["type"] == "directory":
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a video", location)
    system.get_file(path, str(copy))
    got, size = copy.stat().st_size, entry.get("size")
    # More than was told is no loss: a web server may tell the size of what it packs.
    if size is not None and got < size:
        raise ShortReadError(errno.EIO, f"the download ended after {got} of {size} bytes", location)


def retried(
    call: Callable[[], Result],
    *,
    attempts: int = 4,
    first_wait: float = 0.5,
    sleep: Callable[[float], Any] = time.sleep,
) -> tuple[Result, int]:
    """The result of `call` and how often it was tried again after a transient error.

    Waits `first_wait` seconds before the second of at most `attempts` attempts, twice as long
    before each further one, and up to half more or less, so that many do not come back at once.

    Raises:
        Exception: what the last call raised; `retries_of` tells how many there were before.
    """
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    for retries in range(attempts):
        try:
            return call(), retries
        except Exception as error:
            if retries + 1 == attempts or not is_transient(error):
                error.__dict__["retries"] = retries
                raise
        sleep(first_wait * 2**retries * random.uniform(0.5, 1.5))
    raise AssertionError("the last attempt returns or raises")


def retries_of(error: BaseException) -> int:
    """How many retries `retried` had made when it raised an error; 0 for any other."""
    retries = error.__dict__.get("retries", 0)
    return retries if isinstance(retries, int) else 0


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed later: the network or the machine was in trouble.

    Missing files, missing rights and damaged videos are no such cases. Of an error and its causes,
    the first that says for sure decides.
    """
    # Ctrl-C and the like are no failures of the call.
    if not isinstance(error, Exception):
        return False
    chain = list(_chain(error))
    for each in chain:
        said = _says(each)
        if said is not None:
            return said
    # Only a guess: s3fs says so of every answer that it does not know, whose cause is the answer.
    return any(isinstance(each, OSError) and each.errno == errno.EIO for each in chain)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, its cause, the cause of that, ..., each once."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__


def _says(error: BaseException) -> bool | None:
    """Whether an error, without its causes, is transient; None where it does not tell."""
    said = getattr(error, "transient", None)
    if isinstance(said, bool):
        return said
    if isinstance(error, LASTING):
        return False
    if isinstance(error, PASSING):
        return True
    # Its numbers are others than errno's.
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
        return True
    status = _status(error)
    if status is not None:
        return status in TRANSIENT_STATUSES or status >= 500
    named = any(
        kind.__name__ in PASSING_NAMES.get(kind.__module__.partition(".")[0], "").split()
        for kind in type(error).__mro__
    )
    return True if named else None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error is about, wherever its library keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        # botocore's ClientError.
        found = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
    else:
        found = [
            getattr(each, name, None)
            for each in (error, response)
            for name in ("status", "status_code", "code")
        ]
    for value in found:
        if re.fullmatch("[1-5][0-9][0-9]", str(value)):
            return int(str(value))
    return None
