"""path -> uint8 clips [V, T, h, w, C]: what a video becomes, as one value that travels."""

import dataclasses
import math
from typing import Any

import numpy as np

from videomae_jax.config import VideoMAEConfig
from videomae_jax.processing import Preprocess
from videomae_jax.views import Views, read_views


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Which frames of a video, and of what size; `shape` is that of its clips."""

    preprocess: Preprocess
    views: Views
    clip_shape: tuple[int, int, int, int]

    @classmethod
    def of(cls, config: VideoMAEConfig, preprocess: Preprocess, views: Views) -> "Reading":
        """What a model takes.

        Raises:
            ValueError: for several crops of a preprocessing that has no square one.
        """
        preprocess.check_crops(views.crops)
        return cls(preprocess=preprocess, views=views, clip_shape=config.clip_shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """[V, T, h, w, C]."""
        return (self.views.count, *self.clip_shape)

    @property
    def nbytes(self) -> int:
        """Of the clips of one video."""
        return math.prod(self.shape)

    def read(self, path: str, clips: np.ndarray) -> tuple[int, float | None]:
        """Fill `clips`; returns (frames in the video, its seconds or None).

        Raises:
            ValueError: for a bad video; `transient` on it where it may be read later.
        """
        found = read_views(
            path, self.clip_shape[0], preprocess=self.preprocess, views=self.views, out=clips
        )
        return found.frames, found.duration_s

    def prepare(self) -> None:
        """Import what decoding takes, so that no video's time has it in."""
        import importlib
        import importlib.util

        for name in ("av", "PIL.Image"):
            if importlib.util.find_spec(name.partition(".")[0]):
                importlib.import_module(name)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "preprocess": self.preprocess.to_dict(),
            "views": dataclasses.asdict(self.views),
            "clip_shape": list(self.clip_shape),
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Reading":
        """The inverse of `to_dict`."""
        return cls(
            preprocess=Preprocess.from_dict(fields["preprocess"]),
            views=Views(**fields["views"]),
            clip_shape=tuple(fields["clip_shape"]),
        )
