"""The config of a network whose file has none of transformers': from shapes, and `model_config`."""

import math
from collections.abc import Mapping
from typing import Any

from convert.layouts import Layout
from convert.weights import Tensor
from videomae_jax.config import VideoMAEConfig
from videomae_jax.fields import refuse_unknown

# The original code has 1e-6 everywhere.
ORIGINAL_EPS = 1e-6

# By width of the model: S, B, L, H, g.
HEAD_DIMS = {384: 64, 768: 64, 1024: 64, 1280: 80, 1408: 88}
DECODER_HEAD_DIMS = {192: 64, 384: 64, 512: 64, 640: 80}

POSITIONS = "encoder/pos_embed"

# Entries of `model_config` that change nothing in a trained network, or are read here.
MODEL_CONFIG_FIELDS = frozenset(
    """
    all_frames attn_drop_rate cos_attn depth drop_path_rate drop_rate embed_dim head_drop_rate
    img_size in_chans init_scale init_values layer_norm_eps mlp_ratio norm_layer num_classes
    num_frames num_heads patch_size qk_scale qkv_bias tubelet_size use_learnable_pos_emb
    use_mean_pooling with_cp
    """.split()
)


def trained_head_dim(width: int, *, decoder: bool = False) -> int:
    """Width of a head in every published model of this width, as the original code trained it."""
    return (DECODER_HEAD_DIMS if decoder else HEAD_DIMS).get(width, 64)


class Shapes:
    """The shapes of a file's tensors by the places that they go to."""

    def __init__(self, layout: Layout, tensors: Mapping[str, Tensor]):
        self._layout = layout
        self._found: dict[str, Tensor] = {}
        self._layers: dict[str, int] = {}
        for name, tensor in tensors.items():
            taken = layout.find(layout.strip(name))
            if taken is None:
                continue
            rule, layer = taken
            # Any layer will do, so that one that lacks a tensor is for `translate` to name.
            self._found[rule.target] = tensor
            if rule.stacked:
                stack = rule.target.partition("layers/")[0]
                self._layers[stack] = max(self._layers.get(stack, 0), layer + 1)

    def __contains__(self, target: str) -> bool:
        return target in self._found

    def of(self, target: str, rank: int) -> tuple[int, ...]:
        """The shape in the file of what goes to `target`; ValueError if it has another rank."""
        tensor = self._found.get(target)
        if tensor is None or len(tensor.shape) != rank:
            name = next(rule.pattern for rule in self._layout.rules if rule.target == target)
            found = "is missing" if tensor is None else f"is {list(tensor.shape)}"
            raise ValueError(f"{name} {found}; wanted {rank} axes")
        return tensor.shape

    def layers(self, stack: str) -> int:
        """How many layers "encoder/" or "decoder/" has."""
        return self._layers.get(stack, 0)


def from_shapes(
    layout: Layout,
    tensors: Mapping[str, Tensor],
    overrides: Mapping[str, Any],
    *,
    positions: Tensor | None = None,
) -> VideoMAEConfig:
    """The config that shapes tell; heads, frame size and frames are the published models'.

    Stored `positions`, learnt or not, tell the frame size of square frames.

    Raises:
        ValueError: if a tensor that tells a size is missing or has another rank, or heads or frame
            size can't be guessed and aren't among the `overrides`.
    """
    fields = shape_fields(Shapes(layout, tensors), overrides)
    fields |= dict.fromkeys(("layer_norm_eps", "fc_norm_eps", "decoder_norm_eps"), ORIGINAL_EPS)
    if positions is not None and "image_size" not in overrides:
        fields["image_size"] = _image_size(positions, fields | dict(overrides))
    return VideoMAEConfig(**fields | dict(overrides))


def from_model_config(
    layout: Layout, tensors: Mapping[str, Tensor], content: Any, overrides: Mapping[str, Any]
) -> VideoMAEConfig:
    """The config of VideoMAE V2's files on the hub: from `model_config`, checked by the shapes.

    Raises:
        ValueError: for an unknown or impossible entry, or one that the shapes contradict.
    """
    refuse_unknown(content, MODEL_CONFIG_FIELDS, what="model_config")
    said = {name: value for name, value in content.items() if value is not None}
    _refuse_unsupported(said)
    heads = {"num_attention_heads": said["num_heads"]} if "num_heads" in said else {}
    fields = shape_fields(Shapes(layout, tensors), heads | dict(overrides))
    _refuse_contradictions(said, fields)
    eps = said.get("layer_norm_eps", ORIGINAL_EPS)
    fields |= dict.fromkeys(("layer_norm_eps", "fc_norm_eps", "decoder_norm_eps"), eps)
    for name, field in (
        ("img_size", "image_size"),
        ("all_frames", "num_frames"),
        ("num_frames", "num_frames"),
        ("drop_rate", "hidden_dropout_prob"),
        ("attn_drop_rate", "attention_probs_dropout_prob"),
        ("init_values", "layer_scale_init_value"),
    ):
        if name in said:
            fields[field] = said[name]
    return VideoMAEConfig.from_dict(VideoMAEConfig().to_dict() | fields | dict(overrides))


def shape_fields(shapes: Shapes, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The config fields that shapes tell, and the heads."""
    width, channels, tubelet, patch_height, patch_width = shapes.of("encoder/patch_embed/kernel", 5)
    head = "classifier/kernel"
    fields = {
        "hidden_size": width,
        "num_channels": channels,
        "tubelet_size": tubelet,
        "patch_size": (patch_height, patch_width),
        "num_hidden_layers": shapes.layers("encoder/"),
        "intermediate_size": shapes.of("encoder/layers/mlp/fc1/kernel", 2)[0],
        "qkv_bias": "encoder/layers/attention/qkv/query_bias" in shapes,
        "use_mean_pooling": "encoder/norm/scale" not in shapes,
        "num_labels": shapes.of(head, 2)[0] if head in shapes else 0,
        "cos_attn": "encoder/layers/attention/logit_scale" in shapes,
        # Where training began is not in the file; V2's scripts say 0.1 where they say anything.
        "layer_scale_init_value": 0.1 if "encoder/layers/scale_1/gamma" in shapes else 0.0,
        "use_learnable_pos_emb": POSITIONS in shapes,
    }
    fields |= _heads(shapes, "encoder/", width, overrides)
    if "encoder_to_decoder/kernel" in shapes:
        decoder_width = shapes.of("encoder_to_decoder/kernel", 2)[0]
        fields |= {
            "decoder_hidden_size": decoder_width,
            "decoder_num_hidden_layers": shapes.layers("decoder/"),
            "decoder_intermediate_size": shapes.of("decoder/layers/mlp/fc1/kernel", 2)[0],
        }
        fields |= _heads(shapes, "decoder/", decoder_width, overrides)
    return fields


def _heads(shapes: Shapes, stack: str, width: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    decoder = stack == "decoder/"
    field = "decoder_num_attention_heads" if decoder else "num_attention_heads"
    if field in overrides:
        return {field: overrides[field]}
    scales = f"{stack}layers/attention/logit_scale"
    if scales in shapes:
        return {field: shapes.of(scales, 3)[0]}
    head_dim = trained_head_dim(width, decoder=decoder)
    if width % head_dim:
        option = "--decoder-num-heads" if decoder else "--num-heads"
        raise ValueError(
            f"no published model is {width} wide, so its heads can't be guessed; say {option} N"
        )
    return {field: width // head_dim}


def _image_size(positions: Tensor, fields: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of square frames that have as many tokens as there are positions."""
    defaults = VideoMAEConfig()
    frames = fields.get("num_frames", defaults.num_frames)
    count = positions.shape[-2] if len(positions.shape) > 1 else 0
    tubelet = fields["tubelet_size"]
    times = frames // tubelet if tubelet else 0
    side = math.isqrt(count // times) if times > 0 else 0
    if not side or side * side * times != count:
        raise ValueError(
            f"{count} positions are no square frames of {frames} frames in tubelets of "
            f"{tubelet}; say --image-size HxW and --num-frames T"
        )
    height, width = fields["patch_size"]
    return side * height, side * width


def _refuse_unsupported(said: Mapping[str, Any]) -> None:
    if "qk_scale" in said:
        raise ValueError(f"model_config has qk_scale {said['qk_scale']!r}, which is not supported")
    if said.get("norm_layer", "nn.LayerNorm") not in ("nn.LayerNorm", "LayerNorm"):
        raise ValueError(
            f"model_config norm_layer must be nn.LayerNorm, got {said['norm_layer']!r}"
        )
    # The frames have two names.
    frames, same = said.get("num_frames"), said.get("all_frames")
    if frames is not None and same is not None and frames != same:
        raise ValueError(f"model_config has all_frames {same!r} and num_frames {frames!r}")


def _refuse_contradictions(said: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    width, mlp = fields["hidden_size"], fields["intermediate_size"]
    height, patch_width = fields["patch_size"]
    square = height == patch_width and not isinstance(said.get("patch_size"), list)
    found = {
        "embed_dim": width,
        "depth": fields["num_hidden_layers"],
        "in_chans": fields["num_channels"],
        "tubelet_size": fields["tubelet_size"],
        "patch_size": height if square else [height, patch_width],
        "qkv_bias": fields["qkv_bias"],
        "use_mean_pooling": fields["use_mean_pooling"],
        "num_classes": fields["num_labels"],
        "cos_attn": fields["cos_attn"],
        "use_learnable_pos_emb": fields["use_learnable_pos_emb"],
    }
    for name, value in found.items():
        if name in said and said[name] != value:
            raise ValueError(f"model_config has {name} {said[name]!r}, the tensors say {value!r}")
    scaled = bool(fields["layer_scale_init_value"])
    start = said.get("init_values")
    if start is not None and bool(start) != scaled:
        what = "hold a layer scale" if scaled else "hold no layer scale"
        raise ValueError(f"model_config has init_values {start!r}, the tensors {what}")
    ratio = said.get("mlp_ratio")
    # The giant's is 48 / 11, in as many digits as somebody wrote.
    if ratio is not None and not (_is_number(ratio) and abs(width * ratio - mlp) < 1):
        raise ValueError(f"model_config has mlp_ratio {ratio!r}, the tensors say {mlp / width:g}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
