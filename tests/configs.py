"""Small sizes for tests, each different, so that a swapped axis can't pass."""

import numpy as np

from videomae_jax.config import VideoMAEConfig

TINY = VideoMAEConfig(
    image_size=(12, 20),
    patch_size=(4, 4),
    num_frames=6,
    tubelet_size=2,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=40,
    decoder_hidden_size=20,
    decoder_num_attention_heads=5,
    decoder_num_hidden_layers=2,
    decoder_intermediate_size=28,
    num_labels=7,
)


def random_clips(config: VideoMAEConfig, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """Standard normal clips [B, T, H, W, C], float32."""
    shape = (batch, *config.clip_shape)
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def random_params(like, *, seed: int = 0):
    """Random NumPy leaves in the shapes of a tree, none of them all zero or all one."""
    import jax

    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.3 * generator.standard_normal(leaf.shape)).astype(leaf.dtype), like
    )
