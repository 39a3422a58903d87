"""VideoEncoder: clips -> tokens, through a scan over stacked layers."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Float32, Int

from videomae_jax.attention import check_backend
from videomae_jax.config import VideoMAEConfig
from videomae_jax.kernels.kept import KEPT
from videomae_jax.layers import Block, BlockShape, LayerNorm
from videomae_jax.masking import gather_tokens
from videomae_jax.precision import FLOAT32, compute_dtype, product
from videomae_jax.tokens import project_tubelets, sinusoid_table, tubelets


def check_clips(clips: Array | np.ndarray, config: VideoMAEConfig) -> None:
    """Refuse anything but floating-point clips [B, T, H, W, C] of the config's sizes.

    Raises:
        ValueError: with the wanted and the given shape or dtype.
    """
    if clips.ndim != 5 or clips.shape[1:] != config.clip_shape:
        wanted = ", ".join(map(str, ("B", *config.clip_shape)))
        raise ValueError(f"clips must be [B, T, H, W, C] = [{wanted}], got {list(clips.shape)}")
    if not jnp.issubdtype(clips.dtype, jnp.floating):
        raise ValueError(
            f"clips must be floating point, normalised by the checkpoint's preprocess, "
            f"got {clips.dtype}"
        )


def run_layers(
    layers: Block,
    length: int,
    x: Float[Array, "B L D"],
    step: Callable[..., Any],
    *,
    unroll: int,
    drop_path: float = 0.0,
    remat: bool = False,
) -> tuple[Float[Array, "B L D"], Any]:
    """Scan `step(block, x, rate) -> (x, kept)` over stacked layers; the last x and all kept.

    `drop_path` is the rate of the last layer; it grows linearly from 0 at the first. None for all
    when it is 0. For the backward pass a layer keeps what products and attention gave, and what is
    cheap between them is computed once more; with `remat` its input alone, and all is.
    """
    rates = jnp.linspace(0.0, drop_path, length) if drop_path else None
    # Inside a loop nothing can be computed too early, which is what barriers are against.
    kept = jax.checkpoint_policies.save_only_these_names(*([] if remat else [KEPT]))
    step = nn.remat(step, prevent_cse=False, policy=kept)
    scan = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        unroll=unroll,
    )
    return scan(layers, x, rates)


def forward(block: Block, x: Array, rate: Array | None) -> tuple[Array, None]:
    """Step of the plain call."""
    return block(x, rate), None


def forward_keeping_output(block: Block, x: Array, rate: Array | None) -> tuple[Array, Array]:
    """Step that keeps each layer's output."""
    x = block(x, rate)
    return x, x


def forward_keeping_maps(block: Block, x: Array, rate: Array | None) -> tuple[Array, Array]:
    """Step that keeps each layer's attention weights."""
    return block(x, rate), block.maps(x)


class PatchEmbed(nn.Module):
    """Linear embedding of the tubelets of clips [B, T, H, W, C], of all or of the visible ones."""

    config: VideoMAEConfig
    dtype: np.dtype

    @nn.compact
    def __call__(
        self, clips: Array | np.ndarray, visible: Int[Array, "B V"] | None
    ) -> Float32[Array, "B S D"]:
        config = self.config
        start = nn.initializers.normal(config.initializer_range)
        kernel = self.param("kernel", start, (config.tubelet_pixels, config.hidden_size))
        bias = self.param("bias", nn.initializers.zeros, (config.hidden_size,))
        if visible is None:
            return project_tubelets(clips, kernel, config, self.dtype) + bias
        seen = gather_tokens(tubelets(clips, config), visible)
        return product(seen, kernel, self.dtype) + bias


class VideoEncoder(nn.Module):
    """Clips [B, T, H, W, C] -> tokens [B, L, D], in (t, h, w) order; there is no class token.

    With `visible`, int [B, V], only those tokens are embedded and encoded: [B, V, D]. The final
    norm exists when `config.use_mean_pooling` is False, as in transformers' `VideoMAEModel`.
    Every method raises ValueError for clips of another shape than the config's.
    """

    config: VideoMAEConfig
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1
    drop_path: float = 0.0
    remat: bool = False

    def setup(self):
        config, dtype = self.config, compute_dtype(self.dtype)
        check_backend(self.attention_backend)
        self.patch_embed = PatchEmbed(config, dtype)
        self.layers = Block(BlockShape.of_encoder(config, dtype, self.attention_backend))
        if config.use_learnable_pos_emb:
            start = nn.initializers.normal(config.initializer_range)
            self.pos_embed = self.param("pos_embed", start, (config.num_tokens, config.hidden_size))
        if not config.use_mean_pooling:
            self.norm = LayerNorm(config.layer_norm_eps)

    def __call__(
        self, clips: Array | np.ndarray, visible: Int[Array, "B V"] | None = None
    ) -> Float[Array, "B S D"]:
        x, _ = self._run(self.embed(clips, visible), forward)
        return x if self.config.use_mean_pooling else self.norm(x).astype(x.dtype)

    def embed(
        self, clips: Array | np.ndarray, visible: Int[Array, "B V"] | None = None
    ) -> Float[Array, "B S D"]:
        """Tubelet embeddings plus positions, of all tokens or of the visible ones."""
        check_clips(clips, self.config)
        positions = self._positions()[None]
        if visible is not None:
            positions = gather_tokens(positions, visible)
        embedded = self.patch_embed(clips, visible) + positions
        return embedded.astype(compute_dtype(self.dtype))

    def hidden_states(
        self, clips: Array | np.ndarray, visible: Int[Array, "B V"] | None = None
    ) -> Float[Array, "states B S D"]:
        """The embeddings, then the output of each layer; the final norm is not applied."""
        embedded = self.embed(clips, visible)
        _, outputs = self._run(embedded, forward_keeping_output)
        return jnp.concatenate([embedded[None], outputs])

    def attention_maps(
        self, clips: Array | np.ndarray, visible: Int[Array, "B V"] | None = None
    ) -> Float32[Array, "n B N S S"]:
        """Each layer's attention weights: rows are queries and sum to 1 over keys.

        For a small model on 16 x 224 x 224, 0.7 GB a clip in float32.
        """
        _, maps = self._run(self.embed(clips, visible), forward_keeping_maps)
        return maps

    def _positions(self) -> Float[Array, "L D"]:
        if self.config.use_learnable_pos_emb:
            return jnp.asarray(self.pos_embed)
        return jnp.asarray(sinusoid_table(self.config.num_tokens, self.config.hidden_size))

    def _run(self, x: Array, step: Callable[..., Any]) -> tuple[Array, Any]:
        return run_layers(
            self.layers,
            self.config.num_hidden_layers,
            x,
            step,
            unroll=self.unroll,
            drop_path=self.drop_path,
            remat=self.remat,
        )
