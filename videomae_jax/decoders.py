"""A video file as its frames in order: by PyAV, or by OpenCV where that is not installed."""

import contextlib
import errno
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from videomae_jax.containers import avi_frame_counts

Frame = UInt8[np.ndarray, "H W 3"]

TRANSIENT = frozenset(
    getattr(errno, name)
    for name in """
    EAGAIN EBUSY ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR EIO EMFILE
    ENETDOWN ENETRESET ENETUNREACH ENFILE ENOBUFS ENOMEM ENOTCONN EPIPE EREMOTEIO ESHUTDOWN ESTALE
    ETIMEDOUT
    """.split()
    if hasattr(errno, name)
)
"""Numbers of errors that may pass by themselves: a network, a disk that stalls, a full machine."""


class VideoError(ValueError):
    """A file that no clip can be made of; one line that names it and the mend.

    `transient` says that the same file may be read later: it was the disk, or the network.
    """

    def __init__(self, message: str, *, transient: bool = False):
        super().__init__(message)
        self.transient = transient


class Film(NamedTuple):
    """An open video: for each frame shown a function that makes its RGB picture, in order.

    `duration_s(frames)` are its seconds, when so many were seen; None where nothing tells.
    """

    pictures: Iterator[Callable[[], Frame]]
    duration_s: Callable[[int], float | None]


# Reads a file from its start.
Decoder = Callable[[Path, bool], contextlib.AbstractContextManager[Film]]


def decoder() -> Decoder:
    """PyAV's, or OpenCV's where that is not installed.

    Raises:
        VideoError: where neither is.
    """
    if importlib.util.find_spec("av"):
        return _pyav_frames
    if importlib.util.find_spec("cv2"):
        return _opencv_frames
    raise VideoError("no video decoder is installed; pip install 'videomae-jax[video]'")


def guess_count(path: Path) -> int:
    """The number of packets with pictures, without decoding them; 0 if that can't be known."""
    if decoder() is not _pyav_frames:
        return _opencv_count(path)
    with _pyav_stream(path) as (container, stream):
        return sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)


@contextlib.contextmanager
def _pyav_stream(path: Path) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream; libav's errors become VideoError."""
    import av

    trouble = "not a video that can be read"
    previous = av.logging.get_level()
    av.logging.set_level(None)
    try:
        # "file:" keeps libav from reading a colon in the name as a protocol.
        # pyrefly: ignore[no-matching-overload]  # a keyword that not every version has
        with av.open(f"file:{path}", **_lenient_metadata(av.__version__)) as container:
            # The cover of a song is a video stream of one picture.
            cover = av.stream.Disposition.attached_pic
            films = [each for each in container.streams.video if not each.disposition & cover]
            if not films:
                raise VideoError(f"{path}: has no video stream (audio only?); give another file")
            trouble = "damaged"
            yield container, films[0]
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path}: {trouble} ({error.strerror}); copy or convert it again",
            transient=error.errno in TRANSIENT,
        ) from error
    finally:
        av.logging.set_level(previous)


def _lenient_metadata(version: str) -> dict[str, str]:
    """Before 19, PyAV refused files whose title is not UTF-8, unless told otherwise."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


@contextlib.contextmanager
def _pyav_frames(path: Path, threads: bool) -> Iterator[Film]:
    with _pyav_stream(path) as (container, stream):
        stream.thread_type = "AUTO" if threads else "NONE"

        def duration_s(frames: int) -> float | None:
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / 1e6
            return frames / float(stream.average_rate) if stream.average_rate else None

        yield Film(_pyav_pictures(container.decode(stream)), duration_s)


def _pyav_pictures(decoded: Iterator[Any]) -> Iterator[Callable[[], Frame]]:
    from av.video.reformatter import VideoReformatter

    # One for all frames: what it prepares takes as long as some of them.
    reformatter = VideoReformatter()
    size: tuple[int, int] | None = None
    for frame in decoded:
        size = size or (frame.width, frame.height)

        def picture(frame=frame, size=size) -> Frame:
            rgb = reformatter.reformat(frame, size[0], size[1], "rgb24").to_ndarray()
            # Degrees against the clock, as rot90 counts; other angles than these are no rotation
            # of pixels.
            turns = round(frame.rotation / 90) % 4
            return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb

        yield picture


@contextlib.contextmanager
def _opencv_capture(path: Path) -> Iterator[Any]:
    # Read by OpenCV's libav when a file is opened; otherwise it prints to stderr.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    logging = cv2.utils.logging
    previous = logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise VideoError(f"{path}: not a video that can be read; copy or convert it again")
        yield capture
    finally:
        capture.release()
        logging.setLogLevel(previous)


def _opencv_count(path: Path) -> int:
    import cv2

    with _opencv_capture(path) as capture:
        return max(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), 0)


@contextlib.contextmanager
def _opencv_frames(path: Path, threads: bool) -> Iterator[Film]:
    import cv2

    with _without_frame_counts(path) as readable, _opencv_capture(readable) as capture:
        rate = capture.get(cv2.CAP_PROP_FPS)
        yield Film(
            _opencv_pictures(capture, path), lambda frames: frames / rate if rate > 0 else None
        )


def _opencv_pictures(capture: Any, path: Path) -> Iterator[Callable[[], Frame]]:
    import cv2

    def picture() -> Frame:
        _, bgr = capture.retrieve()
        return np.ascontiguousarray(bgr[..., ::-1])

    count = 0
    while capture.grab():
        count += 1
        yield picture
    # OpenCV ends in the same way at damage and at the end. Its count is an estimate for some files.
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    if count < 0.9 * promised:
        raise VideoError(
            f"{path}: OpenCV stops after {count} of about {promised} frames; convert it again, or "
            f"install PyAV: pip install 'videomae-jax[video]'"
        )


@contextlib.contextmanager
def _without_frame_counts(path: Path) -> Iterator[Path]:
    """The file, or of an AVI a copy that promises nothing: OpenCV stops at what the header says."""
    counts = avi_frame_counts(path)
    if not counts:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / "copy.avi"))
        with copy.open("r+b") as file:
            for place in counts:
                file.seek(place)
                file.write(bytes(4))
        yield copy
