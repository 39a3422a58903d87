"""uint8 frames -> pixel values: resize by a named rule, centre crop, rescale, normalise.

All of it on the host, or, where `normalization` is left to the device, a quarter of the bytes.

Two rules, which differ in more than the filter:

    "pil"     what transformers' VideoMAEImageProcessorPil does: Pillow, antialiased; a frame
              smaller than the crop is padded with black.
    "opencv"  the evaluation of the original code: bilinear as cv2.resize does it, without
              antialias; a frame smaller than the crop is refused.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from videomae_jax.fields import refuse_unknown
from videomae_jax.preprocess_fields import RESAMPLE_NAMES, checked_fields
from videomae_jax.resizing import (
    BILINEAR,
    crop_opencv,
    crop_pil,
    resize_opencv,
    resize_pil,
    resized_size,
)
from videomae_jax.sampling import crops_along

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_THREADS = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocess:
    """The way from decoded frames to what the network sees, checked when built; call it.

    Field names are those of Hugging Face's preprocessor_config.json, defaults those of
    transformers' VideoMAEImageProcessorPil; `resize` is the rule's name (see the module).

    size: {"shortest_edge": s}, the long side being int(s * long / short), or
        {"height": h, "width": w}.
    resample: Pillow's number, see `RESAMPLE_NAMES`; "opencv" knows bilinear only.
    image_mean, image_std: one number per colour, or one for all; subtracted and divided by after
        the multiplication with `rescale_factor`.

    Raises:
        ValueError: for a value that no preprocessing can be made of, naming the field.
    """

    resize: str = "pil"
    do_resize: bool = True
    size: dict[str, int] = dataclasses.field(default_factory=lambda: {"shortest_edge": 224})
    resample: int = BILINEAR
    do_center_crop: bool = True
    crop_size: dict[str, int] = dataclasses.field(
        default_factory=lambda: {"height": 224, "width": 224}
    )
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: tuple[float, ...] | float = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] | float = (0.5, 0.5, 0.5)

    def __post_init__(self):
        for name, value in checked_fields(vars(self)).items():
            object.__setattr__(self, name, value)

    def __call__(
        self, frames: np.ndarray, *, threads: int | None = None
    ) -> Float32[np.ndarray, "T height width C"]:
        """uint8 [T, H, W, C] -> float32 [T, height, width, C].

        height x width is `output_size`, or the frames' own where nothing fixes it. Colours are
        resized independently of each other, whatever their number: a fourth one is no alpha
        (transformers would multiply the others by it).

        Args:
            threads: frames worked on at once; by default one per core, at most four. Callers
                that already work on several clips at once say 1.

        Raises:
            ValueError: with the wanted and the given, for another dtype or number of axes, no
                frames, an empty frame, another number of colours than `image_mean` or
                `image_std` has, or a frame smaller than the crop of the "opencv" rule.
        """
        frames = np.asarray(frames)
        self._check_frames(frames)
        table = self._pixel_table(frames.shape[-1])

        def look_up(frame: np.ndarray, output: np.ndarray) -> None:
            for colour, values in enumerate(table):
                output[..., colour] = values.take(frame[..., colour])

        return self._of_each(frames, np.float32, look_up, threads)

    def resized(
        self, frames: np.ndarray, *, threads: int | None = None
    ) -> UInt8[np.ndarray, "T height width C"]:
        """Resized and cropped only, as `Checkpoint.apply_uint8` takes it; else as the call."""
        frames = np.asarray(frames)
        self._check_frames(frames)
        return self._of_each(frames, np.uint8, lambda frame, out: np.copyto(out, frame), threads)

    def crops(self, frame: np.ndarray, count: int = 1) -> UInt8[np.ndarray, "crops h w C"]:
        """One frame, uint8 [H, W, C], resized, and `count` crops of it.

        One crop is that of `resized`. Several are the test protocol's of the original code: the
        short side is resized to that of the crop, and crops lie evenly along the longer one.

        Raises:
            ValueError: as the call, and as `check_crops`.
        """
        self.check_crops(count)
        self._check_frames(frame[None])
        if count == 1:
            return self._resize_and_crop(frame)[None]
        side = self.crop_size["height"]
        if self.do_resize:
            frame = self._resize(frame, {"shortest_edge": side})
        places = crops_along(frame.shape[0], frame.shape[1], side, crops=count)
        return np.stack([frame[top : top + side, left : left + side] for top, left in places])

    def check_crops(self, count: int) -> None:
        """Refuse several crops where the preprocessing has no square one.

        Raises:
            ValueError: with what it has.
        """
        sides = set(self.crop_size.values())
        if count > 1 and not (self.do_center_crop and len(sides) == 1):
            has = _by(self.crop_size.values()) if self.do_center_crop else "none"
            raise ValueError(f"{count} crops need a square crop_size, the preprocessing has {has}")

    def normalization(self) -> tuple[Float32[np.ndarray, "C"], Float32[np.ndarray, "C"]]:
        """(scale, shift): pixel values are uint8 ones times `scale` plus `shift`.

        A number for each colour, or one for all. What it gives is the call's to the last bit of
        float32 or the one before.
        """
        scale = np.float64(self.rescale_factor if self.do_rescale else 1.0)
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)
        mean, std = np.broadcast_arrays(np.atleast_1d(mean), np.atleast_1d(std))
        return (scale / std).astype(np.float32), (-mean / std).astype(np.float32)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of what comes out, or None where the frames decide it."""
        if self.do_center_crop:
            return self.crop_size["height"], self.crop_size["width"]
        if self.do_resize and "height" in self.size:
            return self.size["height"], self.size["width"]
        return None

    def check_fits(self, image_size: int | tuple[int, int], num_channels: int) -> None:
        """Refuse to feed a model of another size or number of colours, as far as can be known.

        Raises:
            ValueError: naming what comes out of the preprocessing and what the model takes.
        """
        given, wanted = self.output_size, _pair(image_size)
        if given is not None and given != wanted:
            raise ValueError(
                f"preprocessing gives frames of {_by(given)} (height x width), "
                f"the model's image_size is {_by(wanted)}"
            )
        colours = self._colours()
        if colours not in (None, num_channels):
            raise ValueError(
                f"preprocessing has image_mean and image_std for {colours} colours, "
                f"the model's num_channels is {num_channels}"
            )

    def describe(self) -> str:
        """One line for reports, such as "short side 224 (pil bilinear, antialiased), ..."."""
        parts = []
        if self.do_resize:
            short = self.size.get("shortest_edge")
            target = f"short side {short}" if short else f"resize to {_by(self.size.values())}"
            smooth = self.resize == "pil" and RESAMPLE_NAMES[self.resample] != "nearest"
            how = ", antialiased" if smooth else ", not antialiased"
            parts.append(f"{target} ({self.resize} {RESAMPLE_NAMES[self.resample]}{how})")
        else:
            parts.append("no resize")
        if self.do_center_crop:
            parts.append(f"centre crop {_by(self.crop_size.values())}")
        if not self.do_rescale:
            parts.append("no rescale")
        elif self.rescale_factor != 1 / 255:
            parts.append(f"times {self.rescale_factor:g}")
        if self.do_normalize:
            parts.append(f"mean {_spell(self.image_mean)}, std {_spell(self.image_std)}")
        else:
            parts.append("not normalised")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Any) -> "Preprocess":
        """The inverse of `to_dict`: every field present, none unknown.

        Raises:
            ValueError: for a missing, unknown or impossible entry, naming it.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        refuse_unknown(fields, known, what="preprocessing")
        missing = sorted(known - set(fields))
        if missing:
            raise ValueError(f"preprocessing lacks {', '.join(missing)}")
        return cls(**checked_fields(fields))

    @classmethod
    def default(cls, image_size: int | tuple[int, int] = 224) -> "Preprocess":
        """What a fresh transformers VideoMAEImageProcessorPil does, at another size.

        Where image_size is not square, the short side is resized to the longer of the two, so
        that the crop lies inside the frame.
        """
        height, width = _pair(image_size)
        short = max(height, width)
        return cls(size={"shortest_edge": short}, crop_size={"height": height, "width": width})

    @classmethod
    def original(cls, image_size: int | tuple[int, int] = 224) -> "Preprocess":
        """The evaluation of the original code (MCG-NJU/VideoMAE); sizes as for `default`.

        OpenCV's rule, ImageNet's mean and standard deviation.
        """
        return dataclasses.replace(
            cls.default(image_size),
            resize="opencv",
            image_mean=IMAGENET_MEAN,
            image_std=IMAGENET_STD,
        )

    def _of_each(
        self,
        frames: UInt8[np.ndarray, "T H W C"],
        dtype: type[np.generic],
        fill: Callable[[np.ndarray, np.ndarray], None],
        threads: int | None,
    ) -> np.ndarray:
        """`fill(resized and cropped frame, its place in the result)` for all, in threads."""
        length, height, width, colours = frames.shape
        if self.do_resize:
            height, width = resized_size(self.size, height, width)
        output = np.empty((length, *(self.output_size or (height, width)), colours), dtype)
        threads = min(os.cpu_count() or 1, MOST_THREADS) if threads is None else threads
        # Pillow and NumPy let go of the interpreter lock while they work.
        with ThreadPoolExecutor(threads) as pool:
            list(
                pool.map(lambda t: fill(self._resize_and_crop(frames[t]), output[t]), range(length))
            )
        return output

    def _colours(self) -> int | None:
        for values in (self.image_mean, self.image_std):
            if self.do_normalize and isinstance(values, tuple):
                return len(values)
        return None

    def _check_frames(self, frames: np.ndarray) -> None:
        if frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape:
            raise ValueError(
                "frames must be uint8 [T, H, W, C], none of them 0, "
                f"got {frames.dtype} {list(frames.shape)}"
            )
        colours = self._colours()
        if colours not in (None, frames.shape[-1]):
            raise ValueError(
                f"frames must have {colours} colours, as image_mean and image_std, "
                f"got {list(frames.shape)}"
            )

    def _pixel_table(self, colours: int) -> Float32[np.ndarray, "C 256"]:
        """What becomes of each uint8 value: exact, and cheaper than arithmetic on every pixel."""
        values = np.arange(256, dtype=np.float64)
        if self.do_rescale:
            # Product in float64, then float32, the rest in float32: transformers' order.
            values = values * self.rescale_factor
        table = np.broadcast_to(values.astype(np.float32), (colours, 256))
        if self.do_normalize:
            mean = np.array(self.image_mean, np.float32).reshape(-1, 1)
            std = np.array(self.image_std, np.float32).reshape(-1, 1)
            table = (table - mean) / std
        return table

    def _resize_and_crop(self, frame: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "h w C"]:
        if self.do_resize:
            frame = self._resize(frame, self.size)
        if self.do_center_crop:
            crop = crop_opencv if self.resize == "opencv" else crop_pil
            frame = crop(frame, self.crop_size["height"], self.crop_size["width"])
        return frame

    def _resize(
        self, frame: UInt8[np.ndarray, "H W C"], size: Mapping[str, int]
    ) -> UInt8[np.ndarray, "h w C"]:
        height, width = resized_size(size, frame.shape[0], frame.shape[1])
        if self.resize == "pil":
            return resize_pil(frame, height, width, resample=self.resample)
        return resize_opencv(frame, height, width)


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    return height, width


def _by(pair: Iterable[int]) -> str:
    return "x".join(map(str, pair))


def _spell(values: tuple[float, ...] | float) -> str:
    return " ".join(f"{value:g}" for value in (values if isinstance(values, tuple) else (values,)))
