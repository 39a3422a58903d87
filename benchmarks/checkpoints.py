"""Untrained checkpoints of any size, in the layouts that the converter reads.

    python -m benchmarks.checkpoints small build/small --format safetensors
    python -m benchmarks.checkpoints huge build/huge --format pth

OUT is a new folder: a Hugging Face one (`safetensors`, written a tensor at a time and without
torch; `bin`), or one with an original file `model.pth`. Names and shapes are written out here, not
taken from the converter's tables, so that they can test them.
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from videomae_jax.config import VARIANTS, VideoMAEConfig

Shapes = dict[str, tuple[int, ...]]

FORMATS = ("safetensors", "bin", "pth")
HUGGING_FACE_CLASSES = {
    "VideoEncoder": "VideoMAEModel",
    "VideoClassifier": "VideoMAEForVideoClassification",
    "VideoPretrainer": "VideoMAEForPreTraining",
}


def hugging_face_shapes(config: VideoMAEConfig, architecture: str) -> Shapes:
    """Names and shapes as published Hugging Face files have them."""

    def block(name: str, width: int, mlp: int) -> Shapes:
        attention = f"{name}.attention"
        shapes = {
            f"{attention}.attention.{part}.weight": (width, width)
            for part in ("query", "key", "value")
        }
        if config.qkv_bias:
            shapes |= {f"{attention}.attention.{part}_bias": (width,) for part in "qv"}
        return (
            shapes
            | linear(f"{attention}.output.dense", width, width)
            | linear(f"{name}.intermediate.dense", width, mlp)
            | linear(f"{name}.output.dense", mlp, width)
            | norm(f"{name}.layernorm_before", width)
            | norm(f"{name}.layernorm_after", width)
        )

    width, projection = config.hidden_size, "embeddings.patch_embeddings.projection"
    shapes = {f"{projection}.weight": patch_shape(config), f"{projection}.bias": (width,)}
    for layer in range(config.num_hidden_layers):
        shapes |= block(f"encoder.layer.{layer}", width, config.intermediate_size)
    if not config.use_mean_pooling:
        shapes |= norm("layernorm", width)
    if architecture == "VideoEncoder":
        return shapes
    shapes = {f"videomae.{name}": shape for name, shape in shapes.items()}
    if architecture == "VideoPretrainer":
        return shapes | decoder_shapes(config, "decoder.decoder_layers", block)
    if config.use_mean_pooling:
        shapes |= norm("fc_norm", width)
    return shapes | linear("classifier", width, config.num_labels)


def original_shapes(config: VideoMAEConfig, architecture: str) -> Shapes:
    """Names and shapes as the original code's state_dict has them."""

    def block(name: str, width: int, mlp: int) -> Shapes:
        shapes: Shapes = {f"{name}.attn.qkv.weight": (3 * width, width)}
        if config.qkv_bias:
            shapes |= {f"{name}.attn.{part}_bias": (width,) for part in "qv"}
        if config.cos_attn:
            heads = config.decoder_num_attention_heads
            if not name.startswith("decoder"):
                heads = config.num_attention_heads
            shapes[f"{name}.attn.scale"] = (heads, 1, 1)
        if config.layer_scale_init_value:
            shapes |= {f"{name}.gamma_1": (width,), f"{name}.gamma_2": (width,)}
        return (
            shapes
            | linear(f"{name}.attn.proj", width, width)
            | linear(f"{name}.mlp.fc1", width, mlp)
            | linear(f"{name}.mlp.fc2", mlp, width)
            | norm(f"{name}.norm1", width)
            | norm(f"{name}.norm2", width)
        )

    width = config.hidden_size
    shapes = {"patch_embed.proj.weight": patch_shape(config), "patch_embed.proj.bias": (width,)}
    if config.use_learnable_pos_emb:
        shapes["pos_embed"] = (1, config.num_tokens, width)
    for layer in range(config.num_hidden_layers):
        shapes |= block(f"blocks.{layer}", width, config.intermediate_size)
    if not config.use_mean_pooling:
        shapes |= norm("norm", width)
    if architecture == "VideoEncoder":
        return shapes
    if architecture == "VideoPretrainer":
        shapes = {f"encoder.{name}": shape for name, shape in shapes.items()}
        return shapes | decoder_shapes(config, "decoder.blocks", block)
    if config.use_mean_pooling:
        shapes |= norm("fc_norm", width)
    return shapes | linear("head", width, config.num_labels)


def v2_hub_shapes(config: VideoMAEConfig, architecture: str) -> Shapes:
    """Names and shapes of VideoMAE V2's files on the hub."""
    return {f"model.{n}": shape for n, shape in original_shapes(config, architecture).items()}


def mmaction2_shapes(config: VideoMAEConfig, architecture: str) -> Shapes:
    """Names and shapes as mmaction2's state_dict has them, its buffer of positions among them."""
    shapes: Shapes = {"backbone.pos_embed": (1, config.num_tokens, config.hidden_size)}
    for name, shape in original_shapes(config, architecture).items():
        name = name.replace("patch_embed.proj.", "patch_embed.projection.")
        name = name.replace("mlp.fc1.", "mlp.layers.0.0.").replace("mlp.fc2.", "mlp.layers.1.")
        in_head = name.startswith("head.")
        shapes[name.replace("head.", "cls_head.fc_cls.") if in_head else f"backbone.{name}"] = shape
    return shapes


def decoder_shapes(config: VideoMAEConfig, layers: str, block) -> Shapes:
    """What a pre-training model has beside its encoder; both layouts agree but for the blocks."""
    width = config.decoder_hidden_size
    shapes = {
        "encoder_to_decoder.weight": (width, config.hidden_size),
        "mask_token": (1, 1, width),
    }
    for layer in range(config.decoder_num_hidden_layers):
        shapes |= block(f"{layers}.{layer}", width, config.decoder_intermediate_size)
    return (
        shapes | norm("decoder.norm", width) | linear("decoder.head", width, config.tubelet_pixels)
    )


def linear(name: str, width_in: int, width_out: int) -> Shapes:
    """torch's linear layer: weights [out, in]."""
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm(name: str, width: int) -> Shapes:
    """torch's LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def patch_shape(config: VideoMAEConfig) -> tuple[int, ...]:
    """The 3-D convolution that embeds tubelets."""
    return (config.hidden_size, config.num_channels, config.tubelet_size, *config.patch_size)


def draw(shapes: Shapes, *, seed: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Random float32 tensors, one at a time; no bias is 0, no norm scale 1."""
    random = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = random.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            values *= 1 / math.sqrt(math.prod(shape[1:]))
        else:
            values *= 0.1
            values += float("norm" in name and name.endswith("weight"))
        yield name, values


def hugging_face_config(config: VideoMAEConfig, architecture: str) -> dict[str, Any]:
    """The contents of the config.json that belongs to the weights."""
    return config.to_hf() | {"architectures": [HUGGING_FACE_CLASSES[architecture]]}


def write_safetensors(
    path: Path, shapes: Shapes, tensors: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Write float32 tensors in the order of `shapes`, holding one at a time."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, values in tensors:
            file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


def write_checkpoint(
    folder: Path, config: VideoMAEConfig, architecture: str, format: str, *, seed: int = 0
) -> Path:
    """Make `folder` with random weights; returns what to give to the converter."""
    folder.mkdir(parents=True)
    if format == "pth":
        weights = dict(draw(original_shapes(config, architecture), seed=seed))
        save_with_torch(folder / "model.pth", {"model": weights, "epoch": 1})
        return folder / "model.pth"
    shapes = hugging_face_shapes(config, architecture)
    if format == "bin":
        save_with_torch(folder / "pytorch_model.bin", dict(draw(shapes, seed=seed)))
    else:
        write_safetensors(folder / "model.safetensors", shapes, draw(shapes, seed=seed))
    text = json.dumps(hugging_face_config(config, architecture), indent=2)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def save_with_torch(path: Path, content: Mapping[str, Any]) -> None:
    """`torch.save`, with the arrays, also those in a mapping inside, as tensors."""
    import torch

    def tensors(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: tensors(item) for name, item in value.items()}
        return torch.from_numpy(value) if isinstance(value, np.ndarray) else value

    torch.save(tensors(content), path)


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.checkpoints", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--format", choices=FORMATS, default="safetensors")
    options = parser.parse_args(argv)
    if options.out.exists():
        parser.exit(2, f"checkpoints: error: {options.out} exists: name a new folder\n")
    config = VARIANTS[options.variant]
    print(write_checkpoint(options.out, config, "VideoClassifier", options.format))
    return 0


if __name__ == "__main__":
    sys.exit(main())
