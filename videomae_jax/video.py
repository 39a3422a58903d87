"""path -> uint8 [T, H, W, C], frame by frame exact, on the host.

Frame i is the i-th picture that the file shows, found by decoding from the start: seeking and the
frame counts in headers are wrong too often. Decoded by PyAV, or by OpenCV where PyAV is absent.
"""

import contextlib
import importlib.util
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from videomae_jax.containers import avi_frame_counts, is_text, missing_bytes
from videomae_jax.sampling import sample

Frame = UInt8[np.ndarray, "H W 3"]
# Reads a file from its start: yields, for each frame shown, a function that makes its RGB picture.
Decoder = Callable[[Path, bool], contextlib.AbstractContextManager[Iterator[Callable[[], Frame]]]]


class VideoError(ValueError):
    """A file that no clip can be made of; one line that names it and the mend."""


def read_clip(
    path: str | os.PathLike,
    num_frames: int = 16,
    *,
    sampling: str = "uniform",
    rate: int = 4,
    threads: bool = True,
) -> UInt8[np.ndarray, "T H W 3"]:
    """T = `num_frames` RGB frames of a video, chosen by a rule of `sampling.SAMPLING`.

    The video is decoded once, to its end, because only that tells how many frames it has; only the
    wanted ones are converted and kept. `rate` is the distance between frames, for the rules that
    have one. Rotation that a phone noted is applied. Frames of another size than the first are
    scaled to it. `threads` lets the decoder use several cores: say False where many videos are
    decoded at once.

    Raises:
        VideoError: (a ValueError) if the file is missing, no video, damaged, cut short or has too
            few frames for the rule.
        ValueError: for an unknown rule, or `num_frames` or `rate` below 1.
    """
    # Fail before any decoding where no length of video could help.
    sample(sampling, 2**40, num_frames, rate=rate)
    path = _existing(path)

    # A guess that is right for nearly every file, and free; a wrong one costs a second pass.
    guess, likely = _guess_count(path), []
    with contextlib.suppress(ValueError):
        likely = sample(sampling, guess, num_frames, rate=rate).tolist()
    frames, count = _decode(path, likely, threads=threads)
    try:
        indices = sample(sampling, count, num_frames, rate=rate).tolist()
    except ValueError as error:
        raise VideoError(f"{path}: {error}") from error
    if not set(indices) <= set(frames):
        frames, count = _decode(path, indices, threads=threads)
    return np.stack([frames[index] for index in indices])


def read_frames(
    path: str | os.PathLike, indices: Sequence[int] | np.ndarray, *, threads: bool = True
) -> UInt8[np.ndarray, "T H W 3"]:
    """The RGB frames at `indices`, in that order; indices may repeat. Decodes up to the last one.

    Raises:
        VideoError: as `read_clip`, and for an index outside the video.
        ValueError: for no indices, or a negative one.
    """
    wanted = [int(index) for index in indices]
    if not wanted or min(wanted) < 0:
        raise ValueError(f"indices must be at least one, none of them negative, got {wanted}")
    path = _existing(path)
    frames, count = _decode(path, wanted, threads=threads, stop=max(wanted))
    if max(wanted) not in frames:
        raise VideoError(f"{path}: has {count} frames, none at {max(wanted)}; ask for fewer")
    return np.stack([frames[index] for index in wanted])


def count_frames(path: str | os.PathLike, *, threads: bool = True) -> int:
    """How many frames the video shows, by decoding them all.

    Raises:
        VideoError: as `read_clip`.
    """
    return _decode(_existing(path), (), threads=threads)[1]


def _existing(path: str | os.PathLike) -> Path:
    """The path, if what stands there could be a whole video."""
    path = Path(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise VideoError(f"{path}: is a directory; give a video file")
        if not stat.S_ISREG(kind):
            raise VideoError(f"{path}: is no regular file; save the video to one")
        missing, text = missing_bytes(path), is_text(path)
    except FileNotFoundError as error:
        raise VideoError(f"{path}: doesn't exist; check the path") from error
    # No rights, a name too long for a file, a file where a folder should be, a disk that fails.
    except OSError as error:
        raise VideoError(
            f"{path}: can't be read ({error.strerror}); check its path and rights"
        ) from error
    if not path.stat().st_size:
        raise VideoError(f"{path}: is empty; copy or download it again")
    if text:
        raise VideoError(f"{path}: is text, not a video; give a video file")
    if missing:
        raise VideoError(f"{path}: is cut short by {missing:,} bytes; copy or download it again")
    return path


def _decode(
    path: Path, wanted: Collection[int], *, threads: bool, stop: int | None = None
) -> tuple[dict[int, Frame], int]:
    """The wanted frames that exist, by index, and the number of frames seen.

    `stop` is the last frame to decode; None goes to the end of the video.
    """
    keep = set(wanted)
    frames: dict[int, Frame] = {}
    count = 0
    with _decoder()(path, threads) as pictures:
        for picture in pictures:
            if count in keep:
                frames[count] = picture()
            count += 1
            if stop is not None and count > stop:
                break
    if not count:
        raise VideoError(f"{path}: has no frames; give another file")
    return frames, count


def _decoder() -> Decoder:
    """PyAV, or OpenCV where that is not installed."""
    if importlib.util.find_spec("av"):
        return _pyav_frames
    if importlib.util.find_spec("cv2"):
        return _opencv_frames
    raise VideoError("no video decoder is installed; pip install 'videomae-jax[video]'")


def _guess_count(path: Path) -> int:
    """The number of packets with pictures, without decoding them; 0 if that can't be known."""
    if _decoder() is not _pyav_frames:
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
            f"{path}: {trouble} ({error.strerror}); copy or convert it again"
        ) from error
    finally:
        av.logging.set_level(previous)


def _lenient_metadata(version: str) -> dict[str, str]:
    """Before 19, PyAV refused files whose title is not UTF-8, unless told otherwise."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


@contextlib.contextmanager
def _pyav_frames(path: Path, threads: bool) -> Iterator[Iterator[Callable[[], Frame]]]:
    with _pyav_stream(path) as (container, stream):
        stream.thread_type = "AUTO" if threads else "NONE"
        yield _pyav_pictures(container.decode(stream))


def _pyav_pictures(decoded: Iterator[Any]) -> Iterator[Callable[[], Frame]]:
    size: tuple[int, int] | None = None
    for frame in decoded:
        size = size or (frame.width, frame.height)

        def picture(frame=frame, size=size) -> Frame:
            rgb = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            # Degrees against the clock, as rot90 counts; other angles than these are no rotation
            # of pixels.
            return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))

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
def _opencv_frames(path: Path, threads: bool) -> Iterator[Iterator[Callable[[], Frame]]]:
    with _without_frame_counts(path) as readable, _opencv_capture(readable) as capture:
        yield _opencv_pictures(capture, path)


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
