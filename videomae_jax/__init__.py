"""VideoMAE in JAX: masked autoencoders for video, in Flax Linen.

Shape letters, the same everywhere:

    B clips, T frames, H height, W width, C colours,
    L tokens (V visible + M hidden), P values in a tubelet,
    D width, N heads, K head width, F mlp width, n layers.

Names are looked up where they live on first use, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videomae_jax.config import VARIANTS, VideoMAEConfig
    from videomae_jax.inference import Checkpoint, classify, load
    from videomae_jax.labels import Labels
    from videomae_jax.losses import pretraining_loss, pretraining_targets
    from videomae_jax.masking import tube_mask
    from videomae_jax.model import VideoClassifier, VideoEncoder, VideoPretrainer
    from videomae_jax.processing import Preprocess
    from videomae_jax.video import VideoError, read_clip

__version__ = "0.1.0"

_HOMES = {
    "VARIANTS": "config",
    "VideoMAEConfig": "config",
    "Checkpoint": "inference",
    "classify": "inference",
    "load": "inference",
    "Labels": "labels",
    "pretraining_loss": "losses",
    "pretraining_targets": "losses",
    "tube_mask": "masking",
    "VideoClassifier": "model",
    "VideoEncoder": "model",
    "VideoPretrainer": "model",
    "Preprocess": "processing",
    "VideoError": "video",
    "read_clip": "video",
}

__all__ = [
    "VARIANTS",
    "Checkpoint",
    "Labels",
    "Preprocess",
    "VideoClassifier",
    "VideoEncoder",
    "VideoError",
    "VideoMAEConfig",
    "VideoPretrainer",
    "classify",
    "load",
    "pretraining_loss",
    "pretraining_targets",
    "read_clip",
    "tube_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'videomae_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"videomae_jax.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
