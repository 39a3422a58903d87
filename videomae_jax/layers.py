"""Attention, Mlp and Block: the pre-norm transformer layer. Knows nothing about video.

Activations are of a block's `dtype`; what stays float32 is said in `precision.py`. Dropout and
drop path act when `apply` is given a "dropout" key (`rngs={"dropout": key}`) and only then.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Float32

from videomae_jax.activations import ACTIVATIONS
from videomae_jax.attention import attend, attention_maps
from videomae_jax.config import VideoMAEConfig
from videomae_jax.kernels.kept import keep
from videomae_jax.precision import FLOAT32, product


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockShape:
    """What a block is built from; the encoder and the decoder of one config have one each."""

    width: int
    num_heads: int
    mlp_width: int
    hidden_act: str
    layer_norm_eps: float
    qkv_bias: bool
    cos_attn: bool
    layer_scale_init_value: float
    hidden_dropout: float
    attention_dropout: float
    initializer_range: float
    dtype: np.dtype
    attention_backend: str | None

    @classmethod
    def of_encoder(
        cls, config: VideoMAEConfig, dtype: np.dtype, attention_backend: str | None
    ) -> "BlockShape":
        """The blocks of a config's encoder, computing in `dtype`."""
        return cls(
            width=config.hidden_size,
            num_heads=config.num_attention_heads,
            mlp_width=config.intermediate_size,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            qkv_bias=config.qkv_bias,
            cos_attn=config.cos_attn,
            layer_scale_init_value=config.layer_scale_init_value,
            hidden_dropout=config.hidden_dropout_prob,
            attention_dropout=config.attention_probs_dropout_prob,
            initializer_range=config.initializer_range,
            dtype=dtype,
            attention_backend=attention_backend,
        )

    @classmethod
    def of_decoder(
        cls, config: VideoMAEConfig, dtype: np.dtype, attention_backend: str | None
    ) -> "BlockShape":
        """The blocks of a config's decoder: its own sizes, everything else as in the encoder.

        Raises:
            ValueError: if the decoder's width is not a multiple of its heads.
        """
        width, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        if width % heads:
            raise ValueError(
                f"decoder_hidden_size {width} is not a multiple of "
                f"decoder_num_attention_heads {heads}"
            )
        return dataclasses.replace(
            cls.of_encoder(config, dtype, attention_backend),
            width=width,
            num_heads=heads,
            mlp_width=config.decoder_intermediate_size,
        )


class Dense(nn.Module):
    """A linear layer, computed in `dtype`; initialised as transformers does: normal, zero bias."""

    features: int
    initializer_range: float
    dtype: np.dtype
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows F"]:
        start = nn.initializers.normal(self.initializer_range)
        kernel = self.param("kernel", start, (x.shape[-1], self.features))
        result = product(x, kernel, self.dtype)
        if self.use_bias:
            result += self.param("bias", nn.initializers.zeros, (self.features,))
        return keep(result.astype(self.dtype))


class LayerNorm(nn.LayerNorm):
    """LayerNorm in float32, whatever comes in and is learnt.

    With the variance of the deviations: E[x^2] - E[x]^2 loses digits in float32.
    """

    use_fast_variance: bool = False
    dtype: Any = FLOAT32


def block_dense(shape: BlockShape, features: int) -> Dense:
    """A linear layer of a block."""
    return Dense(features, shape.initializer_range, shape.dtype)


def same(x: Array) -> Array:
    """`x` as it is, where a block has no layer scale."""
    return x


class Dropout(nn.Module):
    """Dropout that acts only when a "dropout" key was given to `apply`."""

    rate: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.Dropout(self.rate, deterministic=not self.has_rng("dropout"))(x)


class DropPath(nn.Module):
    """Leaves a branch out for whole samples, at random (stochastic depth).

    What is kept is divided by the probability of that, so that the mean stays. Acts only when a
    "dropout" key was given to `apply`.
    """

    @nn.compact
    def __call__(
        self, branch: Float[Array, "B L D"], rate: Float[Array, ""] | float
    ) -> Float[Array, "B L D"]:
        if not self.has_rng("dropout"):
            return branch
        keep = 1.0 - rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (branch.shape[0], 1, 1))
        return jnp.where(kept, branch / keep, 0.0).astype(branch.dtype)


class PackedProjection(nn.Module):
    """Queries, keys and values in one product, with biases on queries and values alone."""

    shape: BlockShape

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L 3*D"]:
        width, dtype = self.shape.width, self.shape.dtype
        start = nn.initializers.normal(self.shape.initializer_range)
        kernel = self.param("kernel", start, (width, 3 * width))
        packed = product(x, kernel, dtype)
        if self.shape.qkv_bias:
            query_bias = self.param("query_bias", nn.initializers.zeros, (width,))
            value_bias = self.param("value_bias", nn.initializers.zeros, (width,))
            packed += jnp.concatenate([query_bias, jnp.zeros_like(query_bias), value_bias])
        return keep(packed.astype(dtype))


class Attention(nn.Module):
    """Multi-head self-attention with its output projection.

    With `cos_attn`, by the angles between queries and keys, as VideoMAE V2 has it: each head learns
    the logarithm of their factor, which starts at 10.
    """

    shape: BlockShape

    def setup(self):
        self.qkv = PackedProjection(self.shape)
        self.drop = Dropout(self.shape.attention_dropout)
        self.proj = block_dense(self.shape, self.shape.width)
        self.logit_scale = None
        if self.shape.cos_attn:
            start = nn.initializers.constant(math.log(10))
            self.logit_scale = self.param("logit_scale", start, (self.shape.num_heads,))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        # Only weights that are dropped from have to be there all at once.
        drops = self.shape.attention_dropout and self.has_rng("dropout")
        mixed = attend(
            self.qkv(x),
            self.shape.num_heads,
            drop=self.drop if drops else None,
            logit_scale=self.logit_scale,
            backend=self.shape.attention_backend,
        )
        return self.proj(mixed)

    def maps(self, x: Float[Array, "B L D"]) -> Float32[Array, "B N L L"]:
        """The attention weights for `x`, before dropout."""
        return attention_maps(self.qkv(x), self.shape.num_heads, logit_scale=self.logit_scale)


class Mlp(nn.Module):
    """Two linear layers with an activation between."""

    shape: BlockShape

    def setup(self):
        self.fc1 = block_dense(self.shape, self.shape.mlp_width)
        self.fc2 = block_dense(self.shape, self.shape.width)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        activation = ACTIVATIONS[self.shape.hidden_act]
        return self.fc2(activation(self.fc1(x).astype(jnp.float32)))


class LayerScale(nn.Module):
    """A learnt factor for each column, the same for every token."""

    start: float

    @nn.compact
    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        gamma = self.param("gamma", nn.initializers.constant(self.start), x.shape[-1:])
        return (x * gamma).astype(x.dtype)


class Block(nn.Module):
    """One transformer layer: norm before, residual around, each branch scaled if so configured.

    `drop_path`, when given, is the probability of leaving a branch out, each by itself.
    """

    shape: BlockShape

    def setup(self):
        self.norm_1 = LayerNorm(self.shape.layer_norm_eps)
        self.attention = Attention(self.shape)
        self.norm_2 = LayerNorm(self.shape.layer_norm_eps)
        self.mlp = Mlp(self.shape)
        self.drop = Dropout(self.shape.hidden_dropout)
        start = self.shape.layer_scale_init_value
        self.scale_1 = LayerScale(start) if start else same
        self.scale_2 = LayerScale(start) if start else same
        self.path_1, self.path_2 = DropPath(), DropPath()

    def __call__(
        self, x: Float[Array, "B L D"], drop_path: Float[Array, ""] | None = None
    ) -> Float[Array, "B L D"]:
        attended = self.drop(self.scale_1(self.attention(self.norm_1(x))))
        x = x + (attended if drop_path is None else self.path_1(attended, drop_path))
        mapped = self.drop(self.scale_2(self.mlp(self.norm_2(x))))
        return x + (mapped if drop_path is None else self.path_2(mapped, drop_path))

    def maps(self, x: Float[Array, "B L D"]) -> Float32[Array, "B N L L"]:
        """The attention weights of this layer for its input `x`."""
        return self.attention.maps(self.norm_1(x))
