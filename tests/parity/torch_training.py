"""Training in plain torch: losses, which parameter decays and how fast it learns, the schedule.

Written from the same formulas as ours and sharing none of it; names are those of transformers.
"""

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch

from videomae_jax.training.settings import Optimizer

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def normalised(frames: np.ndarray) -> torch.Tensor:
    """uint8 [B, T, H, W, C] -> float32 [B, T, C, H, W]."""
    clips = (frames / 255 - MEAN) / STD
    return torch.from_numpy(clips.transpose(0, 1, 4, 2, 3).astype(np.float32))


def smoothed_cross_entropy(
    model: torch.nn.Module, frames: np.ndarray, labels: np.ndarray, *, smoothing: float
) -> torch.Tensor:
    """The mean over the batch."""
    logits = model(normalised(frames)).logits
    return torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(labels).long(), label_smoothing=smoothing
    )


def hidden_pixel_error(
    model: torch.nn.Module, frames: np.ndarray, mask: np.ndarray
) -> torch.Tensor:
    """Mean square over hidden tubelets, each normalised by its own mean and deviation."""
    config = model.config
    pixels = normalised(frames)
    predictions = model(pixels, torch.from_numpy(mask)).logits
    mean, std = (torch.tensor(value).float().reshape(3, 1, 1) for value in (MEAN, STD))
    pixels = pixels * std + mean
    for axis, size in ((1, config.tubelet_size), (4, config.patch_size), (6, config.patch_size)):
        pixels = pixels.unflatten(axis, (-1, size))
    # [B, t, p0, C, h, p1, w, p2] -> [B, t, h, w, p0, p1, p2, C]
    pixels = pixels.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)
    mean, variance = pixels.mean(2, keepdim=True), pixels.var(2, unbiased=True, keepdim=True)
    targets = ((pixels - mean) / (variance.sqrt() + 1e-6)).flatten(2)
    hidden = targets[torch.from_numpy(mask)].reshape(predictions.shape)
    return ((predictions - hidden) ** 2).mean()


def depth(name: str, layers: int) -> int:
    """0 for the embedding, k + 1 for block k of the encoder, the last for what follows."""
    if "embeddings" in name:
        return 0
    block = re.search(r"(?<!decoder\.)encoder\.layer\.(\d+)\.", name)
    return int(block[1]) + 1 if block else layers + 1


def groups(model: torch.nn.Module, optimizer: Optimizer) -> list[dict]:
    """A group for each parameter; "scale" is the factor on its rate."""
    layers = model.config.num_hidden_layers
    return [
        {
            "params": [parameter],
            "weight_decay": (
                0.0
                if parameter.ndim == 1 or name.endswith(("bias", "mask_token"))
                else optimizer.weight_decay
            ),
            "scale": optimizer.layer_decay ** (layers + 1 - depth(name, layers)),
        }
        for name, parameter in model.named_parameters()
    ]


def rates(optimizer: Optimizer, *, batch: int, steps_per_epoch: int) -> np.ndarray:
    """The rate of every step of the run."""
    total, warmup = (
        int(epochs * steps_per_epoch) for epochs in (optimizer.epochs, optimizer.warmup_epochs)
    )
    start, peak, end = (
        rate * batch / 256 for rate in (optimizer.warmup_lr, optimizer.base_lr, optimizer.min_lr)
    )
    turns = np.pi * np.arange(total - warmup) / (total - warmup)
    return np.concatenate(
        [np.linspace(start, peak, warmup), end + (peak - end) * (1 + np.cos(turns)) / 2]
    )


def train(
    model: torch.nn.Module,
    optimizer: Optimizer,
    loss_of: Callable[[int], torch.Tensor],
    *,
    rates: np.ndarray,
) -> Iterator[tuple[float, float, torch.optim.Optimizer]]:
    """A step for each rate: the loss, the norm of the gradient, and the optimizer after it."""
    adamw = torch.optim.AdamW(
        groups(model, optimizer), lr=0.0, betas=optimizer.betas, eps=optimizer.eps
    )
    for step, rate in enumerate(rates):
        for group in adamw.param_groups:
            group["lr"] = rate * group["scale"]
        adamw.zero_grad()
        loss = loss_of(step)
        loss.backward()
        largest = optimizer.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), largest)
        adamw.step()
        yield loss.item(), norm.item(), adamw
