"""How an array changes between a PyTorch file and the parameter tree, and back.

The shapes on the way back come from the network's config, where the array alone does not tell.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from videomae_jax.config import VideoMAEConfig


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of layout, `forward` from the file to the tree, `back` its exact inverse."""

    forward: Callable[[np.ndarray], np.ndarray]
    back: Callable[[np.ndarray, VideoMAEConfig], np.ndarray]

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """`forward`."""
        return self.forward(array)


def _flatten_kernel(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 3, 4, 1, 0).reshape(-1, array.shape[0])


def _unflatten_kernel(array: np.ndarray, config: VideoMAEConfig) -> np.ndarray:
    tubelet = (config.tubelet_size, *config.patch_size, config.num_channels)
    return array.reshape(*tubelet, array.shape[-1]).transpose(4, 3, 0, 1, 2)


def _without_first_axis(array: np.ndarray) -> np.ndarray:
    if array.ndim != 3 or array.shape[0] != 1:
        raise ValueError(f"wanted [1, L, D], got {list(array.shape)}")
    return array[0]


SAME = Change(lambda array: array, lambda array, config: array)

# torch keeps a linear layer's weights [out, in]; Flax keeps [in, out].
TRANSPOSED = Change(lambda array: array.T, lambda array, config: array.T)

# 3-D convolution [D, C, p0, p1, p2] <-> kernel [P, D] of tubelets flattened (p0, p1, p2, c).
FLAT_KERNEL = Change(_flatten_kernel, _unflatten_kernel)

# [1, 1, D] <-> [D].
MASK_TOKEN = Change(lambda array: array.reshape(-1), lambda array, config: array.reshape(1, 1, -1))

# [N, 1, 1] <-> [N].
HEAD_SCALES = Change(lambda array: array.reshape(-1), lambda array, config: array.reshape(-1, 1, 1))

# [1, L, D] <-> [L, D].
POSITIONS = Change(_without_first_axis, lambda array, config: array[None])
