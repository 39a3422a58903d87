"""Copies that go away, errors that may pass, and what is tried again."""

import errno
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.error
from http import HTTPStatus
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests.memory_files import FlakyFileSystem, memory_files
from tpu.files import (
    ShortReadError,
    download_folder,
    is_transient,
    local_copy,
    retried,
    retries_of,
)
from tpu.locations import LocationError
from videomae_jax import writing


@pytest.fixture
def bucket():
    with memory_files({"/bucket/clips/one.mp4": b"twelve bytes", "/bucket/odd.m p": b"x"}):
        yield


def no_sleep(seconds):
    raise AssertionError(f"waits {seconds} s")


@pytest.mark.parametrize("written", ["{}", "file://{}", "local://{}"])
def test_a_local_file_is_no_copy(tmp_path, written):
    video = tmp_path / "a b#1?.mp4"
    video.write_bytes(b"video")
    with local_copy(written.format(video), tmp_path / "nowhere") as path:
        assert path == video
    assert video.exists()


def test_a_local_file_that_is_missing_is_for_the_decoder(tmp_path):
    with local_copy(str(tmp_path / "missing.mp4"), tmp_path) as path:
        assert path == tmp_path / "missing.mp4"


def test_a_download_is_there_meanwhile(tmp_path, bucket):
    with local_copy("memory://bucket/clips/one.mp4", tmp_path) as path:
        assert path.read_bytes() == b"twelve bytes"
        assert path.parent == tmp_path
        assert path.suffix == ".mp4"
        with local_copy("memory://bucket/clips/one.mp4", tmp_path) as other:
            assert other != path
    assert not list(tmp_path.iterdir())


def test_a_suffix_that_is_none_is_dropped(tmp_path, bucket):
    with local_copy("memory://bucket/odd.m p", tmp_path) as path:
        assert path.suffix == ""


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_download_is_removed_whatever_happens(tmp_path, bucket, error):
    def fail():
        with local_copy("memory://bucket/clips/one.mp4", tmp_path) as path:
            assert path.exists()
            raise error

    with pytest.raises(error):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_download_may_be_removed_by_its_user(tmp_path, bucket):
    with local_copy("memory://bucket/clips/one.mp4", tmp_path) as path:
        path.unlink()


def copied(location, folder):
    with local_copy(location, folder) as path:
        return path.read_bytes()


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("memory://bucket/none.mp4", FileNotFoundError),
        ("memory://bucket/clips", IsADirectoryError),
        ("nosuchscheme://bucket/one.mp4", LocationError),
    ],
)
def test_what_is_no_file_is_not_tried_again(tmp_path, bucket, location, error):
    with pytest.raises(error) as caught:
        retried(lambda: copied(location, tmp_path), sleep=no_sleep)
    assert retries_of(caught.value) == 0
    assert not list(tmp_path.iterdir())


def test_a_short_read_is_seen_and_may_pass(tmp_path, bucket):
    FlakyFileSystem.arriving = 5
    with pytest.raises(ShortReadError, match="ended after 5 of 12 bytes") as caught:
        copied("flaky://bucket/clips/one.mp4", tmp_path)
    assert is_transient(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_download_goes_well_at_last(tmp_path, bucket):
    FlakyFileSystem.errors = [OSError(errno.EIO, "wire"), ConnectionResetError("gone")]
    waits = []
    content, retries = retried(
        lambda: copied("flaky://bucket/clips/one.mp4", tmp_path), sleep=waits.append
    )
    assert (content, retries) == (b"twelve bytes", 2)
    assert FlakyFileSystem.calls == ["info", "info", "info", "get_file"]
    assert 0.25 <= waits[0] <= 0.75
    assert 0.5 <= waits[1] <= 1.5


@hypothesis.given(st.integers(1, 6), st.integers(0, 8), st.floats(0.01, 10))
def test_how_often_and_how_long(attempts, failures, first_wait):
    waits, calls = [], []

    def call():
        calls.append(None)
        if len(calls) <= failures:
            raise TimeoutError
        return "well"

    def act():
        return retried(call, attempts=attempts, first_wait=first_wait, sleep=waits.append)

    if failures < attempts:
        assert act() == ("well", failures)
    else:
        with pytest.raises(TimeoutError) as caught:
            act()
        assert retries_of(caught.value) == attempts - 1
    assert len(calls) == min(failures + 1, attempts)
    assert len(waits) == len(calls) - 1
    for turn, wait in enumerate(waits):
        assert 0.5 <= wait / (first_wait * 2**turn) <= 1.5


def test_waits_differ():
    def waits_of_one():
        waits = []
        with pytest.raises(TimeoutError):
            retried(raiser(TimeoutError()), attempts=5, sleep=waits.append)
        return tuple(waits)

    assert len({waits_of_one() for _ in range(5)}) == 5


def raiser(error):
    def call():
        raise error

    return call


def test_a_lasting_error_after_a_passing_one_knows_of_it():
    errors = [TimeoutError(), FileNotFoundError()]

    def call():
        raise errors.pop(0)

    with pytest.raises(FileNotFoundError) as caught:
        retried(call, sleep=lambda seconds: None)
    assert retries_of(caught.value) == 1


def test_no_attempt_is_no_call():
    with pytest.raises(ValueError, match="attempts must be at least 1, got 0"):
        retried(no_sleep, attempts=0)


def foreign(module, name, bases=(Exception,), **attributes):
    """An error of a library that need not be installed."""
    kind = type(name, bases, {"__module__": module})
    error = kind("trouble")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def caused(error, cause):
    error.__cause__ = cause
    return error


class Response:
    def __init__(self, status_code):
        self.status_code = status_code


def boto(status):
    answer = {"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return foreign("botocore.exceptions", "ClientError", response=answer)


TRANSIENT = [
    *(OSError(number, "x") for number in (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM)),
    OSError(errno.ETIMEDOUT, "x"),
    OSError(errno.ENOSPC, "x"),
    BrokenPipeError(),
    ConnectionRefusedError(),
    TimeoutError(),
    TimeoutError(),
    socket.gaierror(socket.EAI_AGAIN, "name resolution"),
    ssl.SSLError("bad record"),
    urllib.error.HTTPError("http://x", 503, "busy", None, None),
    foreign("aiohttp.client_exceptions", "ClientPayloadError"),
    foreign("aiohttp.client_exceptions", "ClientResponseError", status=429),
    foreign("botocore.exceptions", "EndpointConnectionError", (type(foreign(
        "botocore.exceptions", "HTTPClientError")),)),
    boto(503),
    foreign("gcsfs.retry", "HttpError", code="408"),
    foreign("gcsfs.retry", "ChecksumError"),
    foreign("google.auth.exceptions", "TransportError"),
    foreign("google.api_core.exceptions", "TooManyRequests", code=HTTPStatus.TOO_MANY_REQUESTS),
    foreign("requests.exceptions", "HTTPError", response=Response(500)),
    foreign("requests.exceptions", "ConnectionError", (OSError,), response=None),
    foreign("httpx", "HTTPStatusError", response=Response(425)),
    foreign("urllib3.exceptions", "ProtocolError"),
    foreign("videomae_jax.video", "VideoError", (ValueError,), transient=True),
    caused(ValueError("can't be read"), OSError(errno.EIO, "x")),
    caused(ValueError("outer"), caused(RuntimeError("inner"), ConnectionResetError())),
    # s3fs: the answer is 400, but what it stands for is known.
    caused(OSError(errno.ETIMEDOUT, "RequestTimeout"), boto(400)),
    caused(OSError(errno.EIO, "unknown"), boto(500)),
]  # fmt: skip
LASTING = [
    FileNotFoundError(errno.ENOENT, "x"),
    PermissionError(errno.EACCES, "x"),
    IsADirectoryError(errno.EISDIR, "x"),
    OSError(errno.ENAMETOOLONG, "x"),
    OSError("no number"),
    ValueError("corrupt"),
    MemoryError(),
    KeyboardInterrupt(),
    SystemExit(500),
    ssl.SSLCertVerificationError("expired"),
    socket.gaierror(socket.EAI_NONAME, "no such host"),
    urllib.error.HTTPError("http://x", 404, "none", None, None),
    foreign("aiohttp.client_exceptions", "InvalidURL", (ValueError,)),
    foreign("aiohttp.client_exceptions", "ClientResponseError", status=403),
    foreign("botocore.exceptions", "NoCredentialsError"),
    boto(403),
    foreign("gcsfs.retry", "HttpError", code=401),
    foreign("requests.exceptions", "HTTPError", (OSError,), response=Response(404)),
    foreign("somewhere.else", "ConnectionError"),
    foreign("videomae_jax.video", "VideoError", (ValueError,), transient=False),
    caused(foreign("x", "VideoError", (ValueError,), transient=False), OSError(errno.EIO, "x")),
    caused(PermissionError("denied"), boto(503)),
    # s3fs: EIO for every answer that it does not know.
    caused(OSError(errno.EIO, "unknown"), boto(400)),
    caused(ValueError("can't be read"), FileNotFoundError()),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_what_may_pass(error):
    assert is_transient(error)


@pytest.mark.parametrize("error", LASTING, ids=repr)
def test_what_will_not_pass(error):
    assert not is_transient(error)


def test_a_ring_of_causes_ends():
    error = ValueError("one")
    error.__cause__ = caused(ValueError("two"), error)
    assert not is_transient(error)


def test_no_library_is_imported_to_ask():
    code = (
        "import sys; from tpu.files import is_transient; is_transient(OSError(5, 'x'));"
        "print([n for n in ('fsspec', 'aiohttp', 'requests', 'pyarrow', 'jax', 'av') "
        "if n in sys.modules])"
    )
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert found.stdout == "[]\n", found.stderr


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_the_download_folder_is_gone_afterwards(temporary):
    with download_folder() as folder, download_folder() as other:
        (folder / "video.mp4").touch()
        assert folder != other
        assert folder.parent == temporary
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(temporary.iterdir())


def test_downloads_of_killed_processes_are_removed(temporary):
    program = (
        "import os, signal; from tpu.files import download_folder\n"
        "with download_folder() as folder:\n"
        "    (folder / 'half.mp4').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"TMPDIR": str(temporary)}
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", program], cwd=root, env=environment, check=False)
    (left,) = temporary.iterdir()
    assert (left / "half.mp4").exists()
    own = temporary / f".videomae-downloads.{writing._host()}-{os.getpid()}-0123abcd"
    elsewhere = temporary / f".videomae-downloads.elsewhere-{left.name.split('-')[-2]}-0123abcd"
    for other in (own, elsewhere):
        other.mkdir()
    with download_folder() as folder:
        assert set(temporary.iterdir()) == {own, elsewhere, folder}
