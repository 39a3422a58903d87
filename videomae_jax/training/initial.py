"""Weights before training, drawn as the original code draws them.

    pre-training        linear layers Xavier-uniform over the whole matrix (queries, keys and values
                        are one), the mask token normal .02 cut at one deviation
    fine-tuning         linear layers normal .02; the head then scaled by .001
    both                patches uniform within 1 / sqrt(P), weights and biases, as torch's
                        convolutions; other biases 0, norms 1

`model.init` draws as transformers does instead: everything normal .02. Source: MCG-NJU/VideoMAE.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from videomae_jax.model import VideoClassifier, VideoPretrainer

DEVIATION = 0.02
HEAD_SCALE = 1e-3
"""On a fresh classifier, whose gradient then hardly disturbs what was pre-trained."""


def draw_params(
    key: Array, model: VideoClassifier | VideoPretrainer, *, head_scale: float = HEAD_SCALE
) -> dict[str, Any]:
    """A tree of float32 parameters for the model, which pre-trains or classifies; can be traced.

    `head_scale` is the factor on a classifier's weights.
    """
    pretrains = isinstance(model, VideoPretrainer)
    for_start, for_draws = jax.random.split(key)
    start = jax.jit(_start, static_argnums=1)(for_start, model)
    leaves, structure = jax.tree_util.tree_flatten_with_path(start)
    keys = jax.random.split(for_draws, len(leaves))
    drawn = []
    for one, (path, leaf) in zip(keys, leaves, strict=True):
        names = [str(entry.key) for entry in path]
        if "patch_embed" in names:
            bound = 1 / math.sqrt(model.config.tubelet_pixels)
            leaf = jax.random.uniform(one, leaf.shape, minval=-bound, maxval=bound)
        elif names[-1] == "mask_token":
            leaf = DEVIATION * jax.random.truncated_normal(one, -1.0, 1.0, leaf.shape)
        elif names[-1] == "kernel":
            leaf = (
                _xavier(one, leaf) if pretrains else DEVIATION * jax.random.normal(one, leaf.shape)
            )
        if names[0] == "classifier":
            leaf = leaf * head_scale
        drawn.append(leaf)
    return structure.unflatten(drawn)


def _start(key: Array, model: VideoClassifier | VideoPretrainer) -> dict[str, Any]:
    """What `model.init` draws; of its forward pass nothing is computed."""
    # Which backend is not asked for here: no weight depends on it.
    model = model.clone(attention_backend="xla")
    rest = []
    if isinstance(model, VideoPretrainer):
        hidden = model.config.num_tokens // 2
        model = model.clone(num_masked=hidden)
        rest.append(np.arange(model.config.num_tokens)[None] < hidden)
    return dict(model.init(key, jnp.zeros((1, *model.config.clip_shape)), *rest)["params"])


def _xavier(key: Array, like: Array) -> Array:
    """Uniform, as wide as the sides of the matrix say; each layer of a stack by itself."""
    axes = {} if like.ndim == 2 else {"batch_axis": (0,)}
    return nn.initializers.xavier_uniform(**axes)(key, like.shape)
