"""Which layout, which architecture, which sizes: what the keys, shapes and config.json tell."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from convert.errors import ConversionError, generalize
from convert.layouts import LAYOUTS, Layout
from convert.source import Source
from convert.weights import Tensor
from videomae_jax.config import VideoMAEConfig

HF_ARCHITECTURES = {
    "VideoMAEModel": "VideoEncoder",
    "VideoMAEForVideoClassification": "VideoClassifier",
    "VideoMAEForPreTraining": "VideoPretrainer",
}

# The original code has 1e-6 everywhere.
ORIGINAL_EPS = 1e-6

# By width of the model: S, B, L, H, g.
HEAD_DIMS = {384: 64, 768: 64, 1024: 64, 1280: 80, 1408: 88}
DECODER_HEAD_DIMS = {192: 64, 384: 64, 512: 64, 640: 80}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """What a source holds. `overrides` are the config fields that the user set against it."""

    layout: Layout
    architecture: str
    config: VideoMAEConfig
    overrides: Mapping[str, Any]


def trained_head_dim(width: int, *, decoder: bool = False) -> int:
    """Width of a head in every published model of this width, as the original code trained it."""
    return (DECODER_HEAD_DIMS if decoder else HEAD_DIMS).get(width, 64)


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
    where, content = source.path, None
    if layout.has_config:
        where, content = source.config_file, source.config
        architecture = _declared_architecture(content) or architecture
    try:
        if content is not None:
            config = VideoMAEConfig.from_hf(content | dict(overrides))
        else:
            config = VideoMAEConfig(**_original_fields(names, overrides))
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


def _declared_architecture(config: Mapping[str, Any]) -> str | None:
    declared = config.get("architectures")
    first = declared[0] if isinstance(declared, list) and declared else None
    return HF_ARCHITECTURES.get(first) if isinstance(first, str) else None


def _original_fields(names: Mapping[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Config fields of an original file, from its shapes and the published variants."""
    # Any layer will do, so that one that lacks a tensor is a problem for `translate` to name.
    tensors = {generalize(name)[0]: tensor for name, tensor in names.items()}

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors or len(tensors[name].shape) != rank:
            found = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
            raise ValueError(f"{name} {found}; wanted {rank} axes")
        return tensors[name].shape

    width, channels, tubelet, patch_height, patch_width = shape("patch_embed.proj.weight", 5)
    fields = {
        "hidden_size": width,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": (patch_height, patch_width),
        "num_hidden_layers": _count_layers(names, "blocks.{n}."),
        "intermediate_size": shape("blocks.{n}.mlp.fc1.weight", 2)[0],
        "qkv_bias": "blocks.{n}.attn.q_bias" in tensors,
        "use_mean_pooling": "norm.weight" not in tensors,
        "num_labels": shape("head.weight", 2)[0] if "head.weight" in tensors else 0,
        "layer_norm_eps": ORIGINAL_EPS,
        "fc_norm_eps": ORIGINAL_EPS,
        "decoder_norm_eps": ORIGINAL_EPS,
    }
    if "num_attention_heads" not in overrides:
        fields["num_attention_heads"] = _heads(width, "--num-heads")
    if "encoder_to_decoder.weight" in tensors:
        decoder_width = shape("encoder_to_decoder.weight", 2)[0]
        fields |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": _count_layers(names, "decoder.blocks.{n}."),
            "decoder_intermediate_size": shape("decoder.blocks.{n}.mlp.fc1.weight", 2)[0],
        }
        if "decoder_num_attention_heads" not in overrides:
            heads = _heads(decoder_width, "--decoder-num-heads", decoder=True)
            fields["decoder_num_attention_heads"] = heads
    return fields | dict(overrides)


def _count_layers(names: Mapping[str, Tensor], prefix: str) -> int:
    layers = (layer for name, layer in map(generalize, names) if name.startswith(prefix))
    return 1 + max((layer for layer in layers if layer is not None), default=-1)


def _heads(width: int, option: str, *, decoder: bool = False) -> int:
    head_dim = trained_head_dim(width, decoder=decoder)
    if width % head_dim:
        raise ValueError(
            f"no published model is {width} wide, so its heads can't be guessed; say {option} N"
        )
    return width // head_dim
