"""Which layout, which architecture, which sizes: what the keys, shapes and config.json tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from convert import settings
from convert.errors import ConversionError
from convert.layouts import LAYOUTS, Layout
from convert.source import Source
from convert.translate import FLOATS
from convert.weights import Tensor
from videomae_jax.config import MOST_TOKENS, VideoMAEConfig
from videomae_jax.tokens import sinusoid_table

HF_ARCHITECTURES = {
    "VideoMAEModel": "VideoEncoder",
    "VideoMAEForVideoClassification": "VideoClassifier",
    "VideoMAEForPreTraining": "VideoPretrainer",
}

# How far a stored sinusoid may be from ours: a few roundings of a number up to 1 in its precision.
SINUSOID_TOLERANCE = {"F16": 1e-3, "float16": 1e-3, "BF16": 8e-3, "bfloat16": 8e-3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a source holds.

    `overrides` are the config fields that the user set against it, `ignored` the tensors that no
    network needs, each with the reason.
    """

    layout: Layout
    architecture: str
    config: VideoMAEConfig
    overrides: Mapping[str, Any]
    ignored: Mapping[str, str]


def find_layout(source: Source) -> Layout:
    """The layout of a source, by its keys.

    Raises:
        ConversionError: if none fits, with the nearest and the first keys that don't fit it.
    """
    for layout in LAYOUTS:
        found = any(layout.strip(name) == layout.landmark for name in source.tensors)
        if found and (layout.settings != "model_config" or _has_model_config(source)):
            return layout
    raise ConversionError(f"{source.path}: {_nearest(source.tensors)}")


def recognize(source: Source, layout: Layout, overrides: Mapping[str, Any]) -> Network:
    """Find architecture and config of a source in a layout.

    `overrides` are config fields by name: they win over config.json, and over what is assumed
    where neither config.json nor shapes tell (heads, image size, frames of an original file).

    Raises:
        ConversionError: if the config can't be.
    """
    ignored = _ignored(source, layout)
    tensors = {name: tensor for name, tensor in source.tensors.items() if name not in ignored}
    architecture = _architecture(layout, tensors)
    where = source.config_file if layout.settings else source.path
    try:
        if layout.settings == "transformers":
            architecture = _declared_architecture(source.config) or architecture
            config = VideoMAEConfig.from_hf(_overridden(source.config, overrides))
        elif layout.settings == "model_config":
            config = settings.from_model_config(
                layout, tensors, source.config["model_config"], overrides
            )
        else:
            config = settings.from_shapes(
                layout, tensors, overrides, positions=_positions(source, layout)
            )
    except ConversionError:
        raise
    except ValueError as error:
        raise ConversionError(f"{where}: {error}") from error
    return Network(
        layout=layout,
        architecture=architecture,
        config=config,
        overrides=overrides,
        ignored=ignored,
    )


def _has_model_config(source: Source) -> bool:
    return source.config_file.is_file() and "model_config" in source.config


def _overridden(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """transformers' config with other values; another number of classes has no names yet."""
    names = {"id2label", "label2id"} if "num_labels" in overrides else set()
    return {name: value for name, value in config.items() if name not in names} | dict(overrides)


def _nearest(tensors: Mapping[str, Tensor]) -> str:
    """What to say of tensors of no known layout."""
    misfits = {
        layout.name: [name for name in tensors if layout.find(layout.strip(name)) is None]
        for layout in LAYOUTS
    }
    nearest = min(LAYOUTS, key=lambda layout: len(misfits[layout.name]))
    wrong = sorted(misfits[nearest.name])
    if len(wrong) == len(tensors):
        known = ", ".join(layout.name for layout in LAYOUTS)
        return (
            f"not a VideoMAE layout known here ({known}); its first tensors are "
            f"{', '.join(wrong[:4]) or 'none'}"
        )
    text = (
        f"not a VideoMAE layout known here; nearest is {nearest.name}, which "
        f"{len(tensors) - len(wrong)} of {len(tensors)} tensors fit"
    )
    if wrong:
        text += f", but not {', '.join(wrong[:4])}"
    return f"{text}; {nearest.landmark} is missing"


def _ignored(source: Source, layout: Layout) -> dict[str, str]:
    ignored = {}
    for name, tensor in source.tensors.items():
        stripped = layout.strip(name)
        found = layout.find(stripped)
        if found is not None and found[0].target == settings.POSITIONS:
            reason = _why_no_positions(tensor)
        else:
            reason = layout.reason_to_ignore(stripped)
        if reason is not None:
            ignored[name] = reason
    return ignored


def _positions(source: Source, layout: Layout) -> Tensor | None:
    """The stored positions, learnt or not: their number tells the size of the frames."""
    for name, tensor in source.tensors.items():
        found = layout.find(layout.strip(name))
        if found is not None and found[0].target == settings.POSITIONS:
            return tensor
    return None


def _why_no_positions(tensor: Tensor) -> str | None:
    """The reason to leave stored positions out: they are the sinusoids. None: they are learnt."""
    # A file of a few bytes can declare any shape, and a table of it takes memory.
    if tensor.dtype not in FLOATS or len(tensor.shape) != 3:
        return None
    one, count, width = tensor.shape
    if one != 1 or not 0 < count <= MOST_TOKENS or not width:
        return None
    table = sinusoid_table(count, width)
    apart = np.abs(tensor.read().astype(np.float32)[0] - table).max(initial=0.0)
    if not apart <= SINUSOID_TOLERANCE.get(tensor.dtype, 1e-6):
        return None
    return f"the table of sinusoids, which is computed ({apart:.1e} apart at most)"


def _architecture(layout: Layout, names: Mapping[str, Tensor]) -> str:
    taken = [layout.find(layout.strip(name)) for name in names]
    parts = {found[0].target.partition("/")[0] for found in taken if found is not None}
    if "decoder" in parts:
        return "VideoPretrainer"
    return "VideoClassifier" if parts & {"classifier", "fc_norm"} else "VideoEncoder"


def _declared_architecture(config: Mapping[str, Any]) -> str | None:
    declared = config.get("architectures")
    first = declared[0] if isinstance(declared, list) and declared else None
    return HF_ARCHITECTURES.get(first) if isinstance(first, str) else None
