"""VideoPretrainer: an encoder of what is visible, and a decoder that predicts what is hidden."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Float32, Int

from videomae_jax.config import VideoMAEConfig
from videomae_jax.encoder import VideoEncoder, check_clips, forward, run_layers
from videomae_jax.layers import Block, BlockShape, Dense, LayerNorm
from videomae_jax.masking import count_masked, gather_tokens, split_mask
from videomae_jax.precision import FLOAT32, compute_dtype
from videomae_jax.tokens import sinusoid_table


class Decoder(nn.Module):
    """Tokens [B, L, D], hidden ones last -> pixels of the hidden ones [B, M, P]."""

    config: VideoMAEConfig
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1
    remat: bool = False

    def setup(self):
        config, dtype = self.config, compute_dtype(self.dtype)
        self.layers = Block(BlockShape.of_decoder(config, dtype, self.attention_backend))
        self.norm = LayerNorm(config.decoder_norm_eps)
        self.head = Dense(config.tubelet_pixels, config.initializer_range, FLOAT32)

    def __call__(self, x: Float[Array, "B L D"], num_masked: int) -> Float32[Array, "B M P"]:
        length = self.config.decoder_num_hidden_layers
        x, _ = run_layers(self.layers, length, x, forward, unroll=self.unroll, remat=self.remat)
        return self.head(self.norm(x[:, -num_masked:]))


class VideoPretrainer(nn.Module):
    """Clips [B, T, H, W, C] and a mask, bool [B, L], True = hidden -> predictions [B, M, P].

    The encoder sees the visible tokens only; the decoder sees those and mask tokens, and predicts
    the tubelets of the hidden ones in ascending order. Each row of the mask hides M tokens. M is
    a shape: outside `jit` it is counted in the mask, inside it must be said as `num_masked`, and
    a row that hides another number then predicts NaN.

    With a `decoder_mask` too, bool [B, L], True = left out, the decoder predicts instead what that
    leaves, whether the encoder saw it or not: [B, S, P], S the same in each row (VideoMAE V2's dual
    masking). S, too, must be said inside `jit`: `num_decoded`.

    Raises:
        ValueError: for clips or masks of another shape or dtype, rows that differ in M, a mask
            that hides nothing or everything, or a traced mask without `num_masked`.
    """

    config: VideoMAEConfig
    num_masked: int | None = None
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1
    drop_path: float = 0.0
    remat: bool = False
    num_decoded: int | None = None

    def setup(self):
        config = self.config
        self.encoder = VideoEncoder(
            config, self.dtype, self.attention_backend, self.unroll, self.drop_path, self.remat
        )
        self.encoder_to_decoder = Dense(
            config.decoder_hidden_size,
            config.initializer_range,
            compute_dtype(self.dtype),
            use_bias=False,
        )
        self.mask_token = self.param(
            "mask_token", nn.initializers.zeros, (config.decoder_hidden_size,)
        )
        self.decoder = Decoder(config, self.dtype, self.attention_backend, self.unroll, self.remat)

    def __call__(
        self,
        clips: Array | np.ndarray,
        mask: Array | np.ndarray,
        decoder_mask: Array | np.ndarray | None = None,
    ) -> Float32[Array, "B S P"]:
        visible, decoded = self._split(clips, mask)
        if decoder_mask is not None:
            decoded = self._left(clips, decoder_mask)
        tokens = self.encoder_to_decoder(self.encoder(clips, visible))
        config = self.config
        positions = jnp.asarray(sinusoid_table(config.num_tokens, config.decoder_hidden_size))
        positions = positions[None]
        seen = tokens + gather_tokens(positions, visible)
        unseen = self.mask_token + gather_tokens(positions, decoded)
        both = jnp.concatenate([seen, unseen], axis=1).astype(tokens.dtype)
        return self.decoder(both, decoded.shape[1])

    def hidden_states(
        self, clips: Array | np.ndarray, mask: Array | np.ndarray
    ) -> Float[Array, "states B V D"]:
        """As `VideoEncoder.hidden_states`, of the visible tokens."""
        return self.encoder.hidden_states(clips, self._split(clips, mask)[0])

    def attention_maps(
        self, clips: Array | np.ndarray, mask: Array | np.ndarray
    ) -> Float32[Array, "n B N V V"]:
        """As `VideoEncoder.attention_maps`, among the visible tokens."""
        return self.encoder.attention_maps(clips, self._split(clips, mask)[0])

    def _split(
        self, clips: Array | np.ndarray, mask: Array | np.ndarray
    ) -> tuple[Int[Array, "B V"], Int[Array, "B M"]]:
        check_clips(clips, self.config)
        self._check("mask", mask, clips)
        num_masked = count_masked(mask) if self.num_masked is None else self.num_masked
        return split_mask(mask, num_masked)

    def _left(self, clips: Array | np.ndarray, decoder_mask: Array | np.ndarray) -> Array:
        """Indices of what the decoder's mask leaves, int [B, S], ascending."""
        self._check("decoder_mask", decoder_mask, clips)
        left_out = (
            count_masked(decoder_mask)
            if self.num_decoded is None
            else self.config.num_tokens - self.num_decoded
        )
        return split_mask(decoder_mask, left_out)[0]

    def _check(self, name: str, mask: Array | np.ndarray, clips: Array | np.ndarray) -> None:
        wanted = (clips.shape[0], self.config.num_tokens)
        if mask.shape != wanted or mask.dtype != bool:
            raise ValueError(
                f"{name} must be bool [B, L] = {list(wanted)}, got {mask.dtype} {list(mask.shape)}"
            )
