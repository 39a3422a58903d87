"""Which frames, which crops? Index rules, pure NumPy: 0-based, int64.

N is the number of frames in the video, T the number wanted, r the sampling rate, C = T * r the
stretch of video that a clip covers. The rules are those of MCG-NJU/VideoMAE unless said otherwise.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int64

Generator = np.random.Generator


def sample(
    rule: str, video_frames: int, num_frames: int, *, rate: int = 4
) -> Int64[np.ndarray, "T"]:
    """Frame indices of one clip, [T], by a rule of `SAMPLING`.

    Raises:
        ValueError: for an unknown rule, a count or rate below 1, or fewer frames in the video than
            the rule needs.
    """
    if rule not in SAMPLING:
        raise ValueError(f"no sampling rule {rule!r}; one of: {', '.join(SAMPLING)}")
    for name, value in (("num_frames", num_frames), ("rate", rate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if video_frames < 1:
        raise ValueError("it has no frames")
    return SAMPLING[rule](video_frames, num_frames, rate=rate)


def uniform(video_frames: int, num_frames: int, *, rate: int = 4) -> Int64[np.ndarray, "T"]:
    """arange(T) * N // T: spread over the whole video (transformers' video processor).

    Raises:
        ValueError: if the video has fewer than T frames, as in transformers.
    """
    _need(video_frames, num_frames)
    return np.arange(num_frames, dtype=np.int64) * video_frames // num_frames


def linspace(video_frames: int, num_frames: int, *, rate: int = 4) -> Int64[np.ndarray, "T"]:
    """linspace(0, C - 1, T), cut to integers: the first C frames (transformers' older pipeline).

    Raises:
        ValueError: if the video has fewer than C frames.
    """
    _need(video_frames, num_frames * rate)
    return np.linspace(0, num_frames * rate - 1, num_frames).astype(np.int64)


def kinetics(video_frames: int, num_frames: int, *, rate: int = 4) -> Int64[np.ndarray, "T"]:
    """The C frames in the middle, in strides of 4, 4, 4, 5, ... (Kinetics validation, VideoMAE V2).

    A video of at most C frames is gone through once, then its last frame is repeated.
    """
    covered = num_frames * rate
    return _kinetics_until((covered + video_frames) // 2, video_frames, num_frames, rate)


def kinetics_train(
    video_frames: int, num_frames: int, *, rate: int = 4, generator: Generator
) -> Int64[np.ndarray, "T"]:
    """C frames from a random place, as `kinetics` otherwise (Kinetics training)."""
    covered = num_frames * rate
    end = int(generator.integers(covered, video_frames)) if video_frames > covered else covered
    return _kinetics_until(end, video_frames, num_frames, rate)


def kinetics_test(
    video_frames: int, num_frames: int, *, rate: int = 4, segments: int = 5
) -> Int64[np.ndarray, "S T"]:
    """T of every r-th frame, from `segments` starts spread evenly, [S, T] (Kinetics test).

    A video with fewer is filled up with its last such frame. One segment takes the middle (the
    original divides by zero).
    """
    every = np.arange(0, video_frames, rate, dtype=np.int64)
    every = np.concatenate([every, np.repeat(every[-1], max(num_frames - every.size, 0))])
    return np.stack(
        [every[start : start + num_frames] for start in _spread(every.size - num_frames, segments)]
    )


def ssv2(video_frames: int, num_frames: int, *, rate: int = 4) -> Int64[np.ndarray, "T"]:
    """The middle of each of T equal segments (Something-Something v2 validation).

    A video with fewer than T frames is preceded by copies of its first.
    """
    length = video_frames // num_frames
    if length == 0:
        return _padded_in_front(video_frames, num_frames)
    return np.arange(num_frames, dtype=np.int64) * length + length // 2


def ssv2_train(
    video_frames: int, num_frames: int, *, generator: Generator
) -> Int64[np.ndarray, "T"]:
    """A random frame of each of T equal segments, as `ssv2` otherwise (Something-Something v2)."""
    length = video_frames // num_frames
    if length == 0:
        return _padded_in_front(video_frames, num_frames)
    starts = np.arange(num_frames, dtype=np.int64) * length
    return starts + generator.integers(length, size=num_frames)


def ssv2_test(video_frames: int, num_frames: int, *, clips: int = 2) -> Int64[np.ndarray, "S T"]:
    """int(s * tick / S + tick * i) with tick = N / T, [S, T] (Something-Something v2 test)."""
    tick = video_frames / num_frames
    steps = np.arange(num_frames)
    return np.stack(
        [(clip * tick / clips + tick * steps).astype(np.int64) for clip in range(clips)]
    )


def pretraining(
    video_frames: int, num_frames: int, *, rate: int = 4, generator: Generator
) -> Int64[np.ndarray, "T"]:
    """Every r-th frame from a random start; past the end the last frame is repeated."""
    start = int(generator.integers(max(video_frames - num_frames * rate, 0) + 1))
    indices = start + rate * np.arange(num_frames, dtype=np.int64)
    return np.minimum(indices, video_frames - 1)


def crops_along(height: int, width: int, size: int, *, crops: int = 3) -> list[tuple[int, int]]:
    """(top, left) of square crops spread along the longer side (Kinetics and SSv2 test).

    int(s * (max(H, W) - size) / (crops - 1)); one crop takes the middle. The shorter side must be
    `size` already.

    Raises:
        ValueError: if it is not.
    """
    if min(height, width) != size:
        raise ValueError(f"the shorter side must be {size}, got {height} x {width}")
    offsets = _spread(max(height, width) - size, crops)
    return [(0, offset) if width >= height else (offset, 0) for offset in offsets]


def _need(video_frames: int, wanted: int) -> None:
    if video_frames < wanted:
        raise ValueError(
            f"it has {video_frames} frames, fewer than the {wanted} that the sampling rule needs; "
            f"'kinetics' and 'ssv2' repeat frames of a short video"
        )


def _kinetics_until(
    end: int, video_frames: int, num_frames: int, rate: int
) -> Int64[np.ndarray, "T"]:
    covered = num_frames * rate
    if video_frames <= covered:
        own = video_frames // rate
        rest = np.full(num_frames - own, video_frames)
        indices = np.concatenate([np.linspace(0, video_frames, own), rest])
        return indices.clip(0, video_frames - 1).astype(np.int64)
    start = end - covered
    return np.linspace(start, end, num_frames).clip(start, end - 1).astype(np.int64)


def _padded_in_front(video_frames: int, num_frames: int) -> Int64[np.ndarray, "T"]:
    return np.concatenate(
        [np.zeros(num_frames - video_frames, np.int64), np.arange(video_frames, dtype=np.int64)]
    )


def _spread(spare: int, count: int) -> list[int]:
    """`count` offsets from 0 to `spare`, evenly, rounded down; a single one in the middle."""
    if count == 1:
        return [max(spare, 0) // 2]
    return [int(place * max(spare / (count - 1), 0)) for place in range(count)]


# Deterministic rules for one clip: what `--sampling` takes.
SAMPLING: dict[str, Callable[..., Int64[np.ndarray, "T"]]] = {
    "uniform": uniform,
    "linspace": linspace,
    "kinetics": kinetics,
    "ssv2": ssv2,
}
