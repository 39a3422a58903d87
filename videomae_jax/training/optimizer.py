"""AdamW as the original code runs it: its schedule, what decays, and slower rates for early layers.

rate of a step     linear from warmup_lr, then a cosine to min_lr, all times batch_size / 256
weight decay       on matrices alone: not on biases, norms, positions or the mask token
layer decay        layer_decay ** (L + 1 - i): i = 0 for the embedding, k + 1 for block k,
                   L + 1 for everything after the blocks
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from videomae_jax.config import VideoMAEConfig
from videomae_jax.training.settings import Optimizer

# The ends of paths whose parameters never decay, whatever their shape.
NEVER_DECAYED = frozenset({"bias", "query_bias", "value_bias", "pos_embed", "mask_token"})
# The batch that base rates are given for.
BASE_BATCH = 256


def total_steps(optimizer: Optimizer, *, steps_per_epoch: int) -> int:
    """Updates of the whole run: epochs, which may be a fraction, in steps."""
    return int(optimizer.epochs * steps_per_epoch)


def learning_rates(
    optimizer: Optimizer, *, batch_size: int, steps_per_epoch: int
) -> Callable[[Any], Array]:
    """The rate of each step, counted from 0; a function that can be traced.

    W warm-up steps go linearly from warmup_lr to the peak, both ends included; step i after them
    has min_lr + (peak - min_lr) / 2 * (1 + cos(pi * i / (total - W))). Past the last step it stays
    min_lr. All three rates scale with batch_size / 256. Source: MCG-NJU/VideoMAE.

    Raises:
        ValueError: if there is no step at all, or none after the warm-up.
    """
    total = total_steps(optimizer, steps_per_epoch=steps_per_epoch)
    warmup = int(optimizer.warmup_epochs * steps_per_epoch)
    if total <= warmup:
        raise ValueError(
            f"epochs must be more than warmup_epochs: {optimizer.epochs} x {steps_per_epoch} "
            f"steps are {total}, the warm-up has {warmup}"
        )
    scale = batch_size / BASE_BATCH
    start, peak = optimizer.warmup_lr * scale, optimizer.base_lr * scale
    end = optimizer.min_lr * scale

    def rate(step: Any) -> Array:
        step = jnp.asarray(step, jnp.float32)
        rising = start + (peak - start) * step / max(warmup - 1, 1)
        done = jnp.clip((step - warmup) / (total - warmup), 0.0, 1.0)
        falling = end + 0.5 * (peak - end) * (1.0 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup, rising, falling)

    return rate


def make_optimizer(
    optimizer: Optimizer,
    *,
    schedule: Callable[[Any], Any],
    model_config: VideoMAEConfig,
    params: Any,
) -> optax.GradientTransformation:
    """AdamW with decoupled weight decay, layer decay and clipping, for a tree of parameters.

    `params` may be abstract. The gradient is clipped to `clip_norm` first; the update is
    -rate * layer_scale * (m / (sqrt(v) + eps) + weight_decay * p), as torch's AdamW has it with
    the rate of each group scaled.

    Raises:
        ValueError: for a layer decay outside (0, 1].
    """
    scales = layer_scales(params, model_config, layer_decay=optimizer.layer_decay)
    parts = [
        optax.scale_by_adam(*optimizer.betas, eps=optimizer.eps),
        optax.add_decayed_weights(optimizer.weight_decay, mask=decayed(params)),
    ]
    if optimizer.clip_norm:
        parts.insert(0, optax.clip_by_global_norm(optimizer.clip_norm))
    if optimizer.layer_decay != 1.0:
        parts.append(
            optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))
        )
    return optax.chain(*parts, optax.scale_by_learning_rate(schedule))


def decayed(params: Any) -> Any:
    """A tree of bool: which parameters weight decay acts on.

    Not those of one dimension (of one layer, where layers are stacked), nor biases, positions and
    the mask token.
    """

    def judge(path: Any, leaf: Any) -> bool:
        names = _names(path)
        dimensions = leaf.ndim - ("layers" in names)
        return dimensions > 1 and names[-1] not in NEVER_DECAYED

    return jax.tree_util.tree_map_with_path(judge, params)


def layer_scales(params: Any, config: VideoMAEConfig, *, layer_decay: float) -> Any:
    """A tree of factors on the rate, float32, each broadcast against its parameter.

    layer_decay ** (L + 1 - i) with L layers in the encoder: i is 0 for the embedding of patches
    and learnt positions, k + 1 for block k, L + 1 for norms after the blocks and the head. What
    only pre-training has (the decoder) is not scaled.

    Raises:
        ValueError: for a layer decay outside (0, 1].
    """
    if not 0.0 < layer_decay <= 1.0:
        raise ValueError(f"layer_decay must be in (0, 1], got {layer_decay}")
    last = config.num_hidden_layers + 1

    def scale(path: Any, leaf: Any) -> np.ndarray:
        names = _names(path)
        if "decoder" in names:
            depth = np.array(last)
        elif "patch_embed" in names or names[-1] == "pos_embed":
            depth = np.array(0)
        elif "layers" in names:
            depth = 1 + np.arange(leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1))
        else:
            depth = np.array(last)
        return np.asarray(layer_decay ** (last - depth), np.float32)

    return jax.tree_util.tree_map_with_path(scale, params)


def _names(path: Any) -> list[str]:
    return [str(entry.key) for entry in path]
