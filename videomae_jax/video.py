"""path -> uint8 [T, H, W, C], frame by frame exact, on the host.

Frame i is the i-th picture that the file shows, found by decoding from the start: seeking and the
frame counts in headers are wrong too often. Decoded by PyAV, or by OpenCV where PyAV is absent.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from videomae_jax import decoders
from videomae_jax.containers import is_text, missing_bytes
from videomae_jax.decoders import TRANSIENT, Frame, VideoError
from videomae_jax.sampling import sample


class Seen(NamedTuple):
    """What was made of the wanted frames, by index; how many frames there are; their seconds."""

    made: dict[int, Any]
    count: int
    duration_s: float | None


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

    def choose(count: int) -> list[int]:
        return sample(sampling, count, num_frames, rate=rate).tolist()

    seen = read_chosen(path, choose, as_it_is, threads=threads)
    return np.stack([seen.made[index] for index in choose(seen.count)])


def read_chosen(
    path: str | os.PathLike,
    choose: Callable[[int], Sequence[int]],
    make: Callable[[Frame], Any],
    *,
    threads: bool = True,
) -> Seen:
    """What `make` makes of the frames that `choose(number of frames)` names, each once.

    The video is decoded once, to its end; one frame is held at a time, besides what is made of
    them. `choose` raises ValueError for a video that it can't choose from.

    Raises:
        VideoError: as `read_clip`.
    """
    path = _existing(path)

    # A guess that is right for nearly every file, and free; a wrong one costs a second pass.
    guess, likely = decoders.guess_count(path), []
    with contextlib.suppress(ValueError):
        likely = choose(guess)
    seen = _decode(path, likely, make, threads=threads)
    try:
        indices = choose(seen.count)
    except ValueError as error:
        raise VideoError(f"{path}: {error}") from error
    if not set(indices) <= set(seen.made):
        seen = _decode(path, indices, make, threads=threads)
    return seen


def as_it_is(frame: Frame) -> Frame:
    """The frame."""
    return frame


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
    seen = _decode(path, wanted, as_it_is, threads=threads, stop=max(wanted))
    if max(wanted) not in seen.made:
        raise VideoError(f"{path}: has {seen.count} frames, none at {max(wanted)}; ask for fewer")
    return np.stack([seen.made[index] for index in wanted])


def count_frames(path: str | os.PathLike, *, threads: bool = True) -> int:
    """How many frames the video shows, by decoding them all.

    Raises:
        VideoError: as `read_clip`.
    """
    return _decode(_existing(path), (), as_it_is, threads=threads).count


def each_frame(path: str | os.PathLike, *, threads: bool = True) -> Iterator[Frame]:
    """Every frame of a video, in order; one is held at a time.

    Raises:
        VideoError: as `read_clip`, once it is iterated over: at damage, after the frames before it.
    """
    path = _existing(path)
    with decoders.decoder()(path, threads) as film:
        empty = True
        for picture in film.pictures:
            empty = False
            yield picture()
        if empty:
            raise VideoError(f"{path}: has no frames; give another file")


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
            f"{path}: can't be read ({error.strerror}); check its path and rights",
            transient=error.errno in TRANSIENT,
        ) from error
    if not path.stat().st_size:
        raise VideoError(f"{path}: is empty; copy or download it again")
    if text:
        raise VideoError(f"{path}: is text, not a video; give a video file")
    if missing:
        raise VideoError(f"{path}: is cut short by {missing:,} bytes; copy or download it again")
    return path


def _decode(
    path: Path,
    wanted: Collection[int],
    make: Callable[[Frame], Any],
    *,
    threads: bool,
    stop: int | None = None,
) -> Seen:
    """The wanted frames that exist, and the number of frames seen.

    `stop` is the last frame to decode; None goes to the end of the video.
    """
    keep = set(wanted)
    made: dict[int, Any] = {}
    count = 0
    with decoders.decoder()(path, threads) as film:
        for picture in film.pictures:
            if count in keep:
                made[count] = make(picture())
            count += 1
            if stop is not None and count > stop:
                break
        if not count:
            raise VideoError(f"{path}: has no frames; give another file")
        return Seen(made, count, film.duration_s(count))
