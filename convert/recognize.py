"""Which layout, which architecture, which sizes: what the keys, shapes and config.json tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert.errors import ConversionError
from convert.layouts import LAYOUTS, Layout
from convert.source import Source, Tensor
from videomae_jax.config import VideoMAEConfig

HF_ARCHITECTURES = {
    "VideoMAEModel": "VideoEncoder",
    "VideoMAEForVideoClassification": "VideoClassifier",
    "VideoMAEForPreTraining": "VideoPretrainer",
}

# The original code has 1e-6 everywhere.
ORIGINAL_EPS = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a source holds. `overrides` are the config fields that the user set against it."""

    layout: Layout
    architecture: str
    config: VideoMAEConfig
    overrides: Mapping[str, Any]


def trained_head_dim(width: int, *, decoder: bool = False) -> int:
    """Width of a head in every published model of this width, as the original code trained it."""
    return {640: 80}.get(width, 64) if decoder else {1280: 80, 1408: 88}.get(width, 64)


def recognize(source: Source, overrides: Mapping[str, Any]) -> Network:
    """Find layout, architecture and config of a source.

    `overrides` are config fields by name: they win over config.json, and over what is assumed
    where neither config.json nor shapes tell (heads, image size, frames of an original file).

    Raises:
        ConversionError: if no layout fits, or the config can't be.
    """
    layout = _layout(source)
    names = {layout.strip(name): tensor for name, tensor in source.tensors.items()}
    architecture = _architecture(layout, names)
    if layout.has_config:
        if source.config is None:
            raise ConversionError(
                f"{source.path}: a Hugging Face layout needs the config.json that belongs to it, "
                f"in the same folder"
            )
        where = f"{source.path / 'config.json' if source.path.is_dir() else source.path}"
        declared = source.config.get("architectures") or []
        if isinstance(declared, list) and declared and declared[0] in HF_ARCHITECTURES:
            architecture = HF_ARCHITECTURES[declared[0]]
    else:
        where = f"{source.path}"
    try:
        if layout.has_config:
            config = dataclasses.replace(VideoMAEConfig.from_hf(source.config), **overrides)
        else:
            config = VideoMAEConfig(**_original_fields(source, names, overrides))
    except ValueError as error:
        raise ConversionError(f"{where}: {error}") from error
    return Network(layout=layout, architecture=architecture, config=config, overrides=overrides)


def _layout(source: Source) -> Layout:
    for layout in LAYOUTS:
        if any(layout.strip(name) == layout.landmark for name in source.tensors):
            return layout
    first = ", ".join(sorted(source.tensors)[:4])
    known = "; ".join(f"{layout.name} has {layout.landmark}" for layout in LAYOUTS)
    raise ConversionError(
        f"{source.path}: not a VideoMAE layout known here ({known}); its first tensors are {first}"
    )


def _architecture(layout: Layout, names: Mapping[str, Tensor]) -> str:
    taken = [found[0].target for name in names if (found := layout.find(name)) is not None]
    parts = {target.partition("/")[0] for target in taken}
    if "decoder" in parts:
        return "VideoPretrainer"
    return "VideoClassifier" if parts & {"classifier", "fc_norm"} else "VideoEncoder"


def _original_fields(
    source: Source, names: Mapping[str, Tensor], overrides: Mapping[str, Any]
) -> dict[str, Any]:
    """Config fields of an original file, from its shapes and the published variants."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in names or len(names[name].shape) != rank:
            found = f"has shape {list(names[name].shape)}" if name in names else "is missing"
            raise ConversionError(f"{source.path}: {name} {found}; wanted {rank} axes")
        return names[name].shape

    width, channels, tubelet, patch_height, patch_width = shape("patch_embed.proj.weight", 5)
    fields = {
        "hidden_size": width,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": (patch_height, patch_width),
        "num_hidden_layers": _count_layers(names, "blocks."),
        "intermediate_size": shape("blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": "blocks.0.attn.q_bias" in names,
        "use_mean_pooling": "norm.weight" not in names,
        "num_labels": shape("head.weight", 2)[0] if "head.weight" in names else 0,
        "layer_norm_eps": ORIGINAL_EPS,
        "fc_norm_eps": ORIGINAL_EPS,
        "decoder_norm_eps": ORIGINAL_EPS,
    }
    if "num_attention_heads" not in overrides:
        fields["num_attention_heads"] = _heads(source, width, "--num-heads")
    if "encoder_to_decoder.weight" in names:
        decoder_width = shape("encoder_to_decoder.weight", 2)[0]
        fields |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": _count_layers(names, "decoder.blocks."),
            "decoder_intermediate_size": shape("decoder.blocks.0.mlp.fc1.weight", 2)[0],
        }
        if "decoder_num_attention_heads" not in overrides:
            fields["decoder_num_attention_heads"] = _heads(
                source, decoder_width, "--decoder-num-heads", decoder=True
            )
    return fields | dict(overrides)


def _count_layers(names: Mapping[str, Tensor], prefix: str) -> int:
    layers = {
        name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)
    }
    return 1 + max((int(layer) for layer in layers if layer.isdecimal()), default=-1)


def _heads(source: Source, width: int, option: str, *, decoder: bool = False) -> int:
    head_dim = trained_head_dim(width, decoder=decoder)
    if width % head_dim:
        raise ConversionError(
            f"{source.path}: no published model is {width} wide, so its heads can't be guessed; "
            f"say {option} N"
        )
    return width // head_dim
