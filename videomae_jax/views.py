"""Several clips of one video, and one answer: segments in time, crops along the longer side.

The views of the published test figures, 5x3 on Kinetics and 2x3 on Something-Something v2, and how
they are merged: softmax of each view, then the mean.
"""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, UInt8

from videomae_jax.labels import sigmoid, softmax
from videomae_jax.processing import Preprocess
from videomae_jax.sampling import SAMPLING, kinetics_test, sample, ssv2_test
from videomae_jax.video import VideoError, read_chosen

SEVERAL = ("kinetics", "ssv2")
"""Sampling rules that say how several segments lie in a video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Views:
    """Which clips of a video the model sees; `sampling` is a rule of `sampling.SAMPLING`.

    One segment is what the rule says; several are those of the rule's test protocol. One crop is
    the middle, as the preprocessing has it; several lie evenly along the longer side.

    Raises:
        ValueError: for numbers below 1, an unknown rule, or several segments of a rule that has
            but one.
    """

    segments: int = 1
    crops: int = 1
    sampling: str = "uniform"
    rate: int = 4

    def __post_init__(self):
        for name in ("segments", "crops", "rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.sampling not in SAMPLING:
            raise ValueError(f"no sampling rule {self.sampling!r}; one of: {', '.join(SAMPLING)}")
        if self.segments > 1 and self.sampling not in SEVERAL:
            raise ValueError(
                f"sampling {self.sampling!r} has one segment, got {self.segments}; "
                f"{' and '.join(SEVERAL)} have several"
            )

    def __str__(self) -> str:
        return f"{self.segments}x{self.crops}"

    @classmethod
    def parse(cls, text: str, *, sampling: str | None = None, rate: int = 4) -> "Views":
        """From "SEGMENTSxCROPS"; without a rule "uniform" for one segment, "kinetics" for more.

        Raises:
            ValueError: for another text, and as the class.
        """
        found = re.fullmatch(r"([0-9]+)x([0-9]+)", text.strip())
        if found is None:
            raise ValueError(f"views are SEGMENTSxCROPS, as in 5x3, got {text!r}")
        segments, crops = int(found[1]), int(found[2])
        rule = sampling or ("uniform" if segments == 1 else "kinetics")
        return cls(segments=segments, crops=crops, sampling=rule, rate=rate)

    @property
    def count(self) -> int:
        """How many clips they are."""
        return self.segments * self.crops

    def indices(self, video_frames: int, num_frames: int) -> Int64[np.ndarray, "S T"]:
        """The frames of each segment, of a video of `video_frames`.

        Raises:
            ValueError: for fewer frames than the rule needs.
        """
        if self.segments == 1 or video_frames < 1:
            return sample(self.sampling, video_frames, num_frames, rate=self.rate)[None]
        if self.sampling == "kinetics":
            return kinetics_test(video_frames, num_frames, rate=self.rate, segments=self.segments)
        return ssv2_test(video_frames, num_frames, clips=self.segments)


class VideoViews(NamedTuple):
    """The views of one video: clip s * crops + c is crop c of segment s.

    frames: how many the video has; duration_s: its seconds, None where nothing tells.
    """

    clips: UInt8[np.ndarray, "V T h w C"]
    frames: int
    duration_s: float | None


def read_views(
    path: str | os.PathLike,
    num_frames: int,
    *,
    preprocess: Preprocess,
    views: Views,
    threads: bool = False,
    out: UInt8[np.ndarray, "V T h w C"] | None = None,
) -> VideoViews:
    """All views of a video from one decode, resized and cropped, not normalised.

    Each frame that some view wants is resized once, as it is decoded, so that memory holds one
    frame of the video's own size. With one crop a clip is `preprocess.resized` of its frames. With
    more, the short side becomes that of the crop, and crops lie along the longer one.

    Args:
        threads: let the decoder use several cores; False where many videos are read at once.
        out: filled and returned as `clips`, where given.

    Raises:
        VideoError: (a ValueError) for a file that they can't be made of.
        ValueError: for an `out` of another shape, or several crops of a preprocessing that has no
            square crop.
    """
    preprocess.check_crops(views.crops)

    def choose(count: int) -> list[int]:
        return np.unique(views.indices(count, num_frames)).tolist()

    def crops(frame: np.ndarray) -> np.ndarray:
        try:
            return preprocess.crops(frame, views.crops)
        except ValueError as error:
            raise VideoError(f"{path}: {error}") from error

    seen = read_chosen(path, choose, crops, threads=threads)
    try:
        clips = _arrange(seen.made, views.indices(seen.count, num_frames), out)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return VideoViews(clips, seen.count, seen.duration_s)


def _arrange(
    made: Mapping[int, np.ndarray], indices: np.ndarray, out: np.ndarray | None
) -> np.ndarray:
    """Views [V, T, h, w, C] of the crops of each frame, [crops, h, w, C], of segments [S, T]."""
    segments, num_frames = indices.shape
    crops, *size = next(iter(made.values())).shape
    shape = (segments * crops, num_frames, *size)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8:
        raise ValueError(f"gives clips of {list(shape)}, wanted {list(out.shape)}")
    for segment, chosen in enumerate(indices.tolist()):
        clips = out[segment * crops : (segment + 1) * crops]
        for place, index in enumerate(chosen):
            clips[:, place] = made[index]
    return out


def merge_views(
    logits: Float[np.ndarray, "V labels"], *, multi_label: bool = False
) -> Float[np.ndarray, "labels"]:
    """Probabilities of a video, float64: the mean of each view's softmax (sigmoid)."""
    values = np.asarray(logits, np.float64)
    return (sigmoid(values) if multi_label else softmax(values)).mean(axis=0)
