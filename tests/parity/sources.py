"""Checkpoint files as PyTorch code writes them, and the tiny models whose weights they hold."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.parity.original import Original, OriginalPretrainer
from tests.parity.reference import TINY, build, roughen
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer

SIZES = ["--image-size", "12x20", "--num-frames", "8"]
HEADS = ["--num-heads", "6", "--decoder-num-heads", "2"]

FOLDERS = ("safetensors", "sharded safetensors", "bin", "sharded bin")


def hugging_face_model(model_class: type, *, seed: int = 0, **fields: Any):
    """A tiny model of transformers, no bias 0 and no norm scale 1."""
    return build(model_class, seed=seed, **(TINY | fields))


def save_folder(
    model, folder: Path, kind: str = "safetensors", *, new_biases: bool = False
) -> Path:
    """A Hugging Face folder of one of `FOLDERS`, as transformers wrote or writes it.

    `new_biases` takes the names of a state_dict, query.bias, in place of q_bias. transformers 5
    writes no .bin files, so those are made from the same tensors.
    """
    model.save_pretrained(folder, max_shard_size="20KB" if kind == "sharded safetensors" else "1GB")
    if kind.endswith("safetensors") and not new_biases:
        return folder
    (file,) = folder.glob("*.safetensors")
    tensors = published_names(model, new_biases=new_biases)
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(tensors, file)
        return folder
    file.unlink()
    if kind == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = list(tensors)
    shards = [names[0::3], names[1::3], names[2::3]]
    weight_map = {}
    for number, chosen in enumerate(shards):
        name = f"pytorch_model-{number + 1:05}-of-00003.bin"
        torch.save({tensor: tensors[tensor] for tensor in chosen}, folder / name)
        weight_map |= dict.fromkeys(chosen, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def published_names(model, *, new_biases: bool = False) -> dict[str, torch.Tensor]:
    """A state_dict by the names of published files, or by those of transformers 5."""
    if new_biases:
        return {name: value.clone() for name, value in model.state_dict().items()}
    return {
        name.replace("attention.query.bias", "attention.q_bias").replace(
            "attention.value.bias", "attention.v_bias"
        ): value.clone()
        for name, value in model.state_dict().items()
    }


def original_model(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """A module of `original.py` with random weights, no bias 0 and no norm scale 1.

    Factors of cosine attention lie around 10, half of them beyond 6 to 17; learnt positions are of
    the size of the sinusoids.
    """
    torch.manual_seed(seed)
    roughen(module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("attn.scale"):
                parameter.normal_(mean=math.log(10), std=0.75)
            elif name.endswith("pos_embed"):
                parameter.normal_(std=0.7)
    return module.eval()


def transformers_twin(original: Original | OriginalPretrainer, **fields: Any):
    """transformers' model with the same weights, copied module by module, and eps of its own.

    `fields` are the config's where it isn't tiny.
    """
    if isinstance(original, OriginalPretrainer):
        encoder, model_class = original.encoder, VideoPretrainer
    else:
        encoder = original
        model_class = VideoEncoder if encoder.num_classes is None else VideoClassifier
    twin = hugging_face_model(model_class, use_mean_pooling=encoder.mean_pooling, **fields)
    base = twin if model_class is VideoEncoder else twin.videomae
    with torch.no_grad():
        _copy(encoder.patch_embed.proj, base.embeddings.patch_embeddings.projection)
        _copy_blocks(encoder.blocks, base.encoder.layer)
        if not encoder.mean_pooling:
            _copy(encoder.norm, base.layernorm)
        if model_class is VideoClassifier:
            _copy(encoder.head, twin.classifier)
            if encoder.mean_pooling:
                _copy(encoder.fc_norm, twin.fc_norm)
        if isinstance(original, OriginalPretrainer):
            _copy(original.encoder_to_decoder, twin.encoder_to_decoder)
            twin.mask_token.copy_(original.mask_token)
            _copy_blocks(original.decoder.blocks, twin.decoder.decoder_layers)
            _copy(original.decoder.norm, twin.decoder.norm)
            _copy(original.decoder.head, twin.decoder.head)
    return twin


def _copy(source: nn.Module, target: nn.Module) -> None:
    target.load_state_dict(source.state_dict())


def _copy_blocks(source: nn.ModuleList, target: nn.ModuleList) -> None:
    for block, layer in zip(source, target, strict=True):
        attention = layer.attention.attention
        parts = (attention.query, attention.key, attention.value)
        biases = (block.attn.q_bias, None, block.attn.v_bias)
        for part, third, bias in zip(parts, block.attn.qkv.weight.chunk(3), biases, strict=True):
            part.weight.copy_(third)
            if bias is not None:
                part.bias.copy_(bias)
        _copy(block.attn.proj, layer.attention.output.dense)
        _copy(block.norm1, layer.layernorm_before)
        _copy(block.norm2, layer.layernorm_after)
        _copy(block.mlp.fc1, layer.intermediate.dense)
        _copy(block.mlp.fc2, layer.output.dense)


def training_file(weights: Mapping[str, torch.Tensor], *, entry: str = "model") -> dict[str, Any]:
    """What a training script saves around the weights."""
    parameter = next(iter(weights.values()))
    return {
        entry: dict(weights),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros_like(parameter)}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95), "params": [0]}],
        },
        "epoch": 99,
        "scaler": {"scale": 65536.0},
        "args": argparse.Namespace(model="vit_small_patch16_224", lr=1e-3, resume=None),
    }


def saved(content: Any, path: Path, **options: Any) -> Path:
    """`torch.save` that makes the folder and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def clips_first(clips: np.ndarray) -> torch.Tensor:
    """[B, T, H, W, C] -> the original's [B, C, T, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3)))
