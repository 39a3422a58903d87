"""VideoMAE on one page: VideoEncoder, VideoClassifier, VideoPretrainer.

Clips are float32 [B, T, H, W, C], normalised as the checkpoint's preprocessing says. The plain call
`jax.jit(model.apply)({"params": params}, clips)` is inference; dropout acts when a "dropout" key is
given (`rngs={"dropout": key}`). What lies inside is had through other methods, which cost the plain
call nothing:

    model.apply(variables, clips, method="hidden_states")    # [n + 1, B, L, D]
    model.apply(variables, clips, method="attention_maps")   # [n, B, N, L, L]

The weights of the n layers of a stack are stacked on a leading axis and run through `lax.scan`.

Every model takes `dtype`, "float32" or "bfloat16", that it computes in (see `precision.py`);
`attention_backend`, a name in `attention.BACKENDS`, where None follows the device; ValueError for
others. `unroll` layers are one step of the loop: a longer compilation, for a little speed.
"""

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
from videomae_jax.layers import Block, BlockShape, Dense, LayerNorm
from videomae_jax.masking import count_masked, gather_tokens, split_mask
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
    step: Callable[[Block, Array], Any],
    *,
    unroll: int,
) -> tuple[Float[Array, "B L D"], Any]:
    """Scan `step(block, x) -> (x, kept)` over stacked layers; returns the last x and all kept."""
    scan = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        length=length,
        unroll=unroll,
    )
    return scan(layers, x)


def forward(block: Block, x: Array) -> tuple[Array, None]:
    """Step of the plain call."""
    return block(x), None


def forward_keeping_output(block: Block, x: Array) -> tuple[Array, Array]:
    """Step that keeps each layer's output."""
    x = block(x)
    return x, x


def forward_keeping_maps(block: Block, x: Array) -> tuple[Array, Array]:
    """Step that keeps each layer's attention weights."""
    return block(x), block.maps(x)


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

    def _run(self, x: Array, step: Callable[[Block, Array], Any]) -> tuple[Array, Any]:
        length = self.config.num_hidden_layers
        return run_layers(self.layers, length, x, step, unroll=self.unroll)


class VideoClassifier(nn.Module):
    """Clips [B, T, H, W, C] -> logits [B, num_labels].

    Mean over tokens, then `fc_norm`; or, when `config.use_mean_pooling` is False, the first token
    of the normed ones. With `num_labels` 0 the pooled features [B, D] themselves.
    """

    config: VideoMAEConfig
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1

    def setup(self):
        config = self.config
        self.encoder = VideoEncoder(config, self.dtype, self.attention_backend, self.unroll)
        if config.use_mean_pooling:
            self.fc_norm = LayerNorm(config.fc_norm_eps)
        if config.num_labels:
            self.classifier = Dense(config.num_labels, config.initializer_range, FLOAT32)

    def __call__(self, clips: Array | np.ndarray) -> Float32[Array, "B labels"]:
        pooled = self.pool(self.encoder(clips))
        return self.classifier(pooled) if self.config.num_labels else pooled

    def pool(self, tokens: Float[Array, "B L D"]) -> Float32[Array, "B D"]:
        """What the classifier sees of the encoder's tokens."""
        if self.config.use_mean_pooling:
            return self.fc_norm(tokens.mean(axis=1, dtype=jnp.float32))
        return tokens[:, 0].astype(jnp.float32)

    def hidden_states(self, clips: Array | np.ndarray) -> Float[Array, "states B L D"]:
        """As `VideoEncoder.hidden_states`."""
        return self.encoder.hidden_states(clips)

    def attention_maps(self, clips: Array | np.ndarray) -> Float32[Array, "n B N L L"]:
        """As `VideoEncoder.attention_maps`."""
        return self.encoder.attention_maps(clips)


class Decoder(nn.Module):
    """Tokens [B, L, D], hidden ones last -> pixels of the hidden ones [B, M, P]."""

    config: VideoMAEConfig
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1

    def setup(self):
        config, dtype = self.config, compute_dtype(self.dtype)
        self.layers = Block(BlockShape.of_decoder(config, dtype, self.attention_backend))
        self.norm = LayerNorm(config.decoder_norm_eps)
        self.head = Dense(config.tubelet_pixels, config.initializer_range, FLOAT32)

    def __call__(self, x: Float[Array, "B L D"], num_masked: int) -> Float32[Array, "B M P"]:
        length = self.config.decoder_num_hidden_layers
        x, _ = run_layers(self.layers, length, x, forward, unroll=self.unroll)
        return self.head(self.norm(x[:, -num_masked:]))


class VideoPretrainer(nn.Module):
    """Clips [B, T, H, W, C] and a mask, bool [B, L], True = hidden -> predictions [B, M, P].

    The encoder sees the visible tokens only; the decoder sees those and mask tokens, and predicts
    the tubelets of the hidden ones in ascending order. Each row of the mask hides M tokens. M is
    a shape: outside `jit` it is counted in the mask, inside it must be said as `num_masked`, and
    a row that hides another number then predicts NaN.

    Raises:
        ValueError: for clips or a mask of another shape or dtype, rows that differ in M, a mask
            that hides nothing or everything, or a traced mask without `num_masked`.
    """

    config: VideoMAEConfig
    num_masked: int | None = None
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1

    def setup(self):
        config = self.config
        self.encoder = VideoEncoder(config, self.dtype, self.attention_backend, self.unroll)
        self.encoder_to_decoder = Dense(
            config.decoder_hidden_size,
            config.initializer_range,
            compute_dtype(self.dtype),
            use_bias=False,
        )
        self.mask_token = self.param(
            "mask_token", nn.initializers.zeros, (config.decoder_hidden_size,)
        )
        self.decoder = Decoder(config, self.dtype, self.attention_backend, self.unroll)

    def __call__(
        self, clips: Array | np.ndarray, mask: Array | np.ndarray
    ) -> Float32[Array, "B M P"]:
        visible, hidden = self._split(clips, mask)
        tokens = self.encoder_to_decoder(self.encoder(clips, visible))
        config = self.config
        positions = jnp.asarray(sinusoid_table(config.num_tokens, config.decoder_hidden_size))
        positions = positions[None]
        seen = tokens + gather_tokens(positions, visible)
        unseen = self.mask_token + gather_tokens(positions, hidden)
        both = jnp.concatenate([seen, unseen], axis=1).astype(tokens.dtype)
        return self.decoder(both, hidden.shape[1])

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
        wanted = (clips.shape[0], self.config.num_tokens)
        if mask.shape != wanted or mask.dtype != bool:
            raise ValueError(
                f"mask must be bool [B, L] = {list(wanted)}, got {mask.dtype} {list(mask.shape)}"
            )
        num_masked = count_masked(mask) if self.num_masked is None else self.num_masked
        return split_mask(mask, num_masked)


VideoModel = VideoEncoder | VideoClassifier | VideoPretrainer

ARCHITECTURES: dict[str, type[VideoModel]] = {
    architecture.__name__: architecture
    for architecture in (VideoEncoder, VideoClassifier, VideoPretrainer)
}


def abstract_params(model: VideoModel, dtype: Any = "float32") -> dict[str, Any]:
    """The parameter tree of a model as `jax.ShapeDtypeStruct` leaves; computes nothing."""
    clips = jax.ShapeDtypeStruct((1, *model.config.clip_shape), jnp.float32)
    # No weight depends on the backend, and following the device means to trace all of them.
    model = model.clone(attention_backend="xla")
    rest = []
    if isinstance(model, VideoPretrainer):
        num_masked = 1 if model.num_masked is None else model.num_masked
        rest.append(np.arange(model.config.num_tokens)[None] < num_masked)
    # The key is made inside, so that not even a device is asked for.
    tree = jax.eval_shape(lambda clips: model.init(jax.random.key(0), clips, *rest), clips)
    return jax.tree.map(lambda leaf: leaf.update(dtype=jnp.dtype(dtype)), tree["params"])
