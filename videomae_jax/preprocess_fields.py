"""What may stand in the fields of `processing.Preprocess`."""

from collections.abc import Mapping
from typing import Any

from videomae_jax.fields import is_whole, number, numbers, sides
from videomae_jax.resizing import BILINEAR

RESAMPLE_NAMES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters, by the numbers that preprocessor_config.json files hold."""


def checked_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields in the form they are kept in: tuples, floats, sizes in order of their keys.

    Raises:
        ValueError: for a value that no preprocessing can be made of, naming the field.
    """
    if fields["resize"] not in ("pil", "opencv"):
        raise ValueError(f"resize must be 'pil' or 'opencv', got {fields['resize']!r}")
    for name in ("do_resize", "do_center_crop", "do_rescale", "do_normalize"):
        if not isinstance(fields[name], bool):
            raise ValueError(f"{name} must be true or false, got {fields[name]!r}")
    resample = fields["resample"]
    if not is_whole(resample) or not 0 <= resample < len(RESAMPLE_NAMES):
        raise ValueError(f"resample must be a Pillow filter number, 0 to 5, got {resample!r}")
    if fields["resize"] == "opencv" and resample != BILINEAR:
        raise ValueError(
            f"resize 'opencv' needs resample 2 (bilinear), got {resample} "
            f"({RESAMPLE_NAMES[resample]})"
        )
    mean = numbers("image_mean", fields["image_mean"])
    std = numbers("image_std", fields["image_std"], positive=True)
    if isinstance(mean, tuple) and isinstance(std, tuple) and len(mean) != len(std):
        raise ValueError(f"image_mean has {len(mean)} numbers, image_std has {len(std)}")
    return {
        **fields,
        "size": sides("size", fields["size"], ({"shortest_edge"}, {"height", "width"})),
        "crop_size": sides("crop_size", fields["crop_size"], ({"height", "width"},)),
        "rescale_factor": number("rescale_factor", fields["rescale_factor"], positive=True),
        "image_mean": mean,
        "image_std": std,
    }
