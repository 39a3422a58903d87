"""The original model and VideoMAE V2's in plain torch, as a second reference beside transformers'.

Written from the description alone: shared names, sizes, eps, the order of operations.
"""

import math
from typing import Any

import torch
from torch import nn

EPS = 1e-6

# As VideoMAE V2 rounds log(1 / 0.01).
CLAMP = 4.6052


class Attention(nn.Module):
    """Fused q, k, v, with biases of their own for q and v; by angles with `cos_attn`."""

    def __init__(self, width: int, heads: int, *, cos_attn: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10))) if cos_attn else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (self.qkv(x) + bias).view(batch, length, 3, self.heads, -1).unbind(2)
        mixed = torch.einsum("bnlm,bmnk->blnk", self.scores(q, k).softmax(-1), v)
        return self.proj(mixed.reshape(batch, length, width))

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        if self.scale is None:
            return torch.einsum("blnk,bmnk->bnlm", q, k) / math.sqrt(q.shape[-1])
        q, k = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) for x in (q, k))
        return torch.einsum("blnk,bmnk->bnlm", q, k) * self.scale.clamp(max=CLAMP).exp()


class Mlp(nn.Module):
    """Two layers and the exact GELU."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Norm before, residual around; each branch times a vector with `layer_scale`."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        cos_attn: bool = False,
        layer_scale: bool = False,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, cos_attn=cos_attn)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = Mlp(width, hidden)
        self.layer_scale = layer_scale
        if layer_scale:
            self.gamma_1 = nn.Parameter(torch.full((width,), 0.1))
            self.gamma_2 = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.layer_scale:
            x = x + self.attn(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


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

    Takes clips [B, C, T, H, W]; gives logits, the pooled and normed features where `num_classes` is
    0, or tokens where it is None. `learnable_positions` is their number, 0 for the sinusoids;
    `options` are those of `Block`.
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
        learnable_positions: int = 0,
        **options: bool,
    ):
        super().__init__()
        self.patch_embed = PatchEmbed(width, tubelet)
        self.pos_embed = None
        if learnable_positions:
            self.pos_embed = nn.Parameter(torch.zeros(1, learnable_positions, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, **options) for _ in range(layers))
        self.norm = nn.Identity() if mean_pooling else nn.LayerNorm(width, eps=EPS)
        self.mean_pooling, self.num_classes = mean_pooling, num_classes
        if num_classes is not None:
            self.fc_norm = nn.LayerNorm(width, eps=EPS) if mean_pooling else None
            self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()

    def forward(self, clips: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.patch_embed(clips)
        x = x + (positions(*x.shape[1:]) if self.pos_embed is None else self.pos_embed)
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

    def __init__(
        self, width: int, layers: int, heads: int, hidden: int, pixels: int, **options: bool
    ):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, hidden, **options) for _ in range(layers))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.head = nn.Linear(width, pixels)

    def forward(self, x: torch.Tensor, num_masked: int) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -num_masked:]))


class OriginalPretrainer(nn.Module):
    """The original pre-training model: clips [B, C, T, H, W], mask [B, L] -> [B, M, P].

    Learnt positions are the encoder's alone; the `options` of `Block` are the decoder's, too.
    """

    def __init__(self, *, learnable_positions: int = 0, **options: Any):
        super().__init__()
        self.encoder = Original(
            num_classes=None,
            mean_pooling=False,
            learnable_positions=learnable_positions,
            **options,
        )
        self.encoder_to_decoder = nn.Linear(42, 22, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 22))
        self.decoder = OriginalDecoder(width=22, layers=2, heads=2, hidden=26, pixels=96, **options)

    def forward(self, clips: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        tokens = self.encoder_to_decoder(self.encoder(clips, mask))
        batch, visible, width = tokens.shape
        table = positions(mask.shape[1], width).expand(batch, -1, -1)
        seen = tokens + table[~mask].reshape(batch, visible, width)
        unseen = self.mask_token + table[mask].reshape(batch, -1, width)
        return self.decoder(torch.cat([seen, unseen], dim=1), unseen.shape[1])
