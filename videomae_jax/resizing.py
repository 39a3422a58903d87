"""One frame to another size, and its centre: Pillow's and OpenCV's rules. uint8 in, uint8 out."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8

BILINEAR = 2
"""Pillow's number of the filter."""


def resized_size(size: Mapping[str, int], height: int, width: int) -> tuple[int, int]:
    """(height, width) that a frame of height x width is resized to; the same for both rules."""
    if "height" in size:
        return size["height"], size["width"]
    short = size["shortest_edge"]
    # The order of the operations matters: 224 * 1280 / 720 in floating point, then cut off.
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def resize_pil(
    frame: UInt8[np.ndarray, "H W C"], height: int, width: int, *, resample: int = BILINEAR
) -> UInt8[np.ndarray, "height width C"]:
    """Pillow's resize, antialiased when it shrinks (but for "nearest"), colour by colour."""
    from PIL import Image

    if frame.shape[-1] == 3:
        return np.asarray(Image.fromarray(frame).resize((width, height), resample))
    resized = np.empty((height, width, frame.shape[-1]), np.uint8)
    for colour in range(frame.shape[-1]):
        plane = Image.fromarray(frame[..., colour])
        resized[..., colour] = plane.resize((width, height), resample)
    return resized


def resize_opencv(
    frame: UInt8[np.ndarray, "H W C"], height: int, width: int
) -> UInt8[np.ndarray, "height width C"]:
    """cv2.resize with INTER_LINEAR, without OpenCV: half-pixel centres, edges repeated.

    OpenCV's fixed-point arithmetic (weights of 11 bits, what is below them cut off twice on the
    way down), so that the result is the same to the last bit, except for two colours shrunk to
    exactly one half, where OpenCV rounds .5 to even: one grey level.
    """
    above, below, above_weight, below_weight = _taps(frame.shape[0], height)
    left, right, left_weight, right_weight = _taps(frame.shape[1], width, inside=True)
    rows, places = np.unique(np.concatenate([above, below]), return_inverse=True)
    needed = frame[rows]
    lines = needed[:, left] * left_weight[:, None] + needed[:, right] * right_weight[:, None]
    lines >>= 4
    top = lines[places[:height]] * above_weight[:, None, None] >> 16
    top += lines[places[height:]] * below_weight[:, None, None] >> 16
    return ((top + 2) >> 2).astype(np.uint8)


def _taps(source: int, target: int, *, inside: bool = False) -> tuple[np.ndarray, ...]:
    """Two source indices for each target index, and their weights of 2048 parts, int32.

    inside: past an edge, all weight goes to the outermost pixel, as OpenCV does along rows; along
    columns it weights that pixel twice, which is not the same once cut off.
    """
    centres = (np.arange(target) + 0.5) * (1.0 / (target / source)) - 0.5
    centres = centres.astype(np.float32)
    first = np.floor(centres)
    rest = centres - first
    first = first.astype(np.int64)
    if inside:
        rest[(first < 0) | (first >= source - 1)] = 0.0
    weights = [np.rint(part * np.float32(2048)).astype(np.int32) for part in (1 - rest, rest)]
    return first.clip(0, source - 1), (first + 1).clip(0, source - 1), *weights


def crop_pil(
    frame: UInt8[np.ndarray, "H W C"], height: int, width: int
) -> UInt8[np.ndarray, "height width C"]:
    """The centre of a frame, or the frame in the centre of black, along each side by itself.

    Of an odd number of spare pixels the extra one goes to the bottom and right; of an odd number
    of missing ones, to the top and left (transformers.image_transforms.center_crop).
    """
    starts = [(has - wants) // 2 for has, wants in zip(frame.shape, (height, width), strict=False)]
    inner = frame[tuple(slice(max(start, 0), None) for start in starts)][:height, :width]
    if inner.shape[:2] == (height, width):
        return inner
    padded = np.zeros((height, width, frame.shape[-1]), frame.dtype)
    top, left = (max(-start, 0) for start in starts)
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def crop_opencv(
    frame: UInt8[np.ndarray, "H W C"], height: int, width: int
) -> UInt8[np.ndarray, "height width C"]:
    """The centre of a frame, from int(round(spare / 2)) on (MCG-NJU/VideoMAE).

    Python rounds .5 to even, so of 1 spare pixel 0 are skipped, of 3 it is 2, of 5 it is 2.

    Raises:
        ValueError: if the frame is smaller than the crop.
    """
    spare = frame.shape[0] - height, frame.shape[1] - width
    if min(spare) < 0:
        raise ValueError(
            f"a frame of {frame.shape[0]}x{frame.shape[1]} (height x width) after resizing is "
            f"smaller than crop_size {height}x{width}"
        )
    top, left = (round(pixels / 2) for pixels in spare)
    return frame[top : top + height, left : left + width]
