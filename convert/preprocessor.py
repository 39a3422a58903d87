"""A Hugging Face preprocessor_config.json of any age -> `Preprocess`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from videomae_jax.fields import refuse_unknown
from videomae_jax.processing import Preprocess

# What transformers writes beside the fields of `Preprocess`; none of it changes the pixels of RGB
# frames, but for do_pad and offset, which are refused when set.
GENERIC_HF_FIELDS = frozenset(
    """
    _commit_hash _name_or_path _processor_class _valid_kwargs_names _valid_processor_keys auto_map
    data_format default_to_square device disable_grouping do_convert_rgb do_pad do_sample_frames
    feature_extractor_type fps image_processor_type image_seq_length input_data_format
    model_input_names num_frames offset pad_size processor_class return_metadata return_tensors
    size_divisor transformers_version video_metadata video_processor_type
    """.split()
)


def read_preprocessor(fields: Any) -> Preprocess:
    """From the contents of preprocessor_config.json or video_preprocessor_config.json, as "pil".

    What it lacks gets transformers' defaults, as does what is null; except that the old
    VideoMAEFeatureExtractor cropped to its `size`. Entries that do not touch the pixels of a
    decoded video are passed over.

    Raises:
        ValueError: for an unknown, unsupported, impossible or contradictory entry, naming it.
    """
    ours = {field.name for field in dataclasses.fields(Preprocess)} - {"resize"}
    refuse_unknown(fields, ours | GENERIC_HF_FIELDS, what="preprocessing")
    fields = {name: value for name, value in fields.items() if value is not None}
    _refuse_other_processors(fields)
    known = {name: value for name, value in fields.items() if name in ours}
    if isinstance(fields.get("size"), int) and "feature_extractor_type" in fields:
        known.setdefault("crop_size", fields["size"])
    square = fields.get("default_to_square", False)
    for name, whole in (("size", square), ("crop_size", True)):
        if name in known:
            known[name] = _size(known[name], square=whole)
    return Preprocess.from_dict(Preprocess().to_dict() | known)


def _refuse_other_processors(fields: Mapping[str, Any]) -> None:
    for name in ("feature_extractor_type", "image_processor_type", "video_processor_type"):
        if not str(fields.get(name, "VideoMAE")).startswith("VideoMAE"):
            raise ValueError(f"{name} must be one of VideoMAE's, got {fields[name]!r}")
    for name in ("do_pad", "offset"):
        if fields.get(name):
            raise ValueError(f"{name} is not supported, got {fields[name]!r}")


def _size(size: Any, *, square: bool) -> Any:
    """The size dict that a bare number or a pair (height, width) of older files stands for."""
    if isinstance(size, int):
        return {"height": size, "width": size} if square else {"shortest_edge": size}
    if isinstance(size, (list, tuple)) and len(size) == 2:
        return {"height": size[0], "width": size[1]}
    if isinstance(size, Mapping):
        return {key: value for key, value in size.items() if value is not None}
    return size
