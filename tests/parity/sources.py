"""Checkpoint files as PyTorch code writes them, and the original model in plain torch.

The original model is written here from its description alone (shared names, sizes, eps, the order
of operations), so that it stands beside transformers' as a second reference.
"""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.parity.reference import TINY, build, roughen
from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer

EPS = 1e-6
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


class Attention(nn.Module):
    """Fused q, k, v, with biases of their own for q and v."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (self.qkv(x) + bias).view(batch, length, 3, self.heads, -1).unbind(2)
        scores = torch.einsum("blnk,bmnk->bnlm", q, k) / math.sqrt(width / self.heads)
        mixed = torch.einsum("bnlm,bmnk->blnk", scores.softmax(-1), v)
        return self.proj(mixed.reshape(batch, length, width))


class Mlp(nn.Module):
    """Two layers and the exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Norm before, residual around."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def positions(length: int, width: int) -> torch.Tensor:
    """The sinusoid table, in float64 and then float32."""
    rows = [
        [
            (math.cos if j % 2 else math.sin)(position / 10000 ** (2 * (j // 2) / width))
            for j in range(width)
        ]
        for position in range(length)
    ]
    return torch.tensor(rows, dtype=torch.float64).float()


class PatchEmbed(nn.Module):
    """A 3-D convolution with its kernel as stride."""

    def __init__(self, width: int, tubelet: tuple[int, int, int], channels: int = 3):
        super().__init__()
        self.proj = nn.Conv3d(channels, width, tubelet, tubelet)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.proj(clips).flatten(2).transpose(1, 2)


class Original(nn.Module):
    """The original encoder, with `mean_pooling` or without, and its head where there are classes.

    Takes clips [B, C, T, H, W]; gives logits, or tokens where `num_classes` is None.
    """

    def __init__(
        self,
        *,
        width: int = 42,
        layers: int = 3,
        heads: int = 6,
        hidden: int = 50,
        tubelet: tuple[int, int, int] = (2, 4, 4),
        num_classes: int | None = 9,
        mean_pooling: bool = True,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(width, tubelet)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.Identity() if mean_pooling else nn.LayerNorm(width, eps=EPS)
        self.mean_pooling, self.num_classes = mean_pooling, num_classes
        if num_classes is not None:
            self.fc_norm = nn.LayerNorm(width, eps=EPS) if mean_pooling else None
            self.head = nn.Linear(width, num_classes)

    def forward(self, clips: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.patch_embed(clips)
        x = x + positions(*x.shape[1:])
        if mask is not None:
            x = x[~mask].reshape(len(x), -1, x.shape[-1])
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        if self.num_classes is None:
            return x
        return self.head(self.fc_norm(x.mean(1)) if self.mean_pooling else x[:, 0])


class OriginalDecoder(nn.Module):
    """Blocks, norm, and pixels of the hidden tokens."""

    def __init__(self, width: int, layers: int, heads: int, hidden: int, pixels: int):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, pixels)

    def forward(self, x: torch.Tensor, num_masked: int) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_masked:]))


class OriginalPretrainer(nn.Module):
    """The original pre-training model: clips [B, C, T, H, W], mask [B, L] -> [B, M, P]."""

    def __init__(self):
        super().__init__()
        self.encoder = Original(num_classes=None, mean_pooling=False)
        self.encoder_to_decoder = nn.Linear(42, 22, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 22))
        self.decoder = OriginalDecoder(width=22, layers=2, heads=2, hidden=26, pixels=96)

    def forward(self, clips: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder_to_decoder(self.encoder(clips, mask))
        batch, visible, width = tokens.shape
        table = positions(mask.shape[1], width).expand(batch, -1, -1)
        seen = tokens + table[~mask].reshape(batch, visible, width)
        unseen = self.mask_token + table[mask].reshape(batch, -1, width)
        return self.decoder(torch.cat([seen, unseen], dim=1), unseen.shape[1])


def original_model(module: nn.Module, *, seed: int = 0) -> nn.Module:
    """A module of this file with random weights, no bias 0 and no norm scale 1."""
    torch.manual_seed(seed)
    roughen(module)
    return module.eval()


def transformers_twin(original: nn.Module, **fields: Any):
    """transformers' model with the same weights, copied module by module, and eps of its own.

    `fields` are the config's where it isn't tiny.
    """
    pretrainer = isinstance(original, OriginalPretrainer)
    encoder = original.encoder if pretrainer else original
    if pretrainer:
        model_class = VideoPretrainer
    else:
        model_class = VideoEncoder if encoder.num_classes is None else VideoClassifier
    twin = hugging_face_model(model_class, use_mean_pooling=encoder.mean_pooling, **fields)
    base = twin if model_class is VideoEncoder else twin.videomae
    with torch.no_grad():
        _copy(encoder.patch_embed.proj, base.embeddings.patch_embeddings.projection)
        _copy_blocks(encoder.blocks, base.encoder.layer)
        if not encoder.mean_pooling:
            _copy(encoder.norm, base.layernorm)
        if model_class is VideoClassifier:
            _copy(original.head, twin.classifier)
            if encoder.mean_pooling:
                _copy(original.fc_norm, twin.fc_norm)
        if pretrainer:
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
