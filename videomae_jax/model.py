"""The three networks: VideoEncoder, what classifies on it, and VideoPretrainer.

The encoder is in `encoder.py`, what pre-trains it in `pretrainer.py`, a layer in `layers.py`.

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

For training: `drop_path`, the probability of leaving a branch out at the last layer of the encoder
(0 at the first, linear between), and `head_dropout`, before the classifier, act when a "dropout"
key is given; `remat` keeps each layer's input alone for the backward pass, and computes its inside
again.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jaxtyping import Float, Float32

from videomae_jax.config import VideoMAEConfig
from videomae_jax.encoder import VideoEncoder
from videomae_jax.layers import Dense, Dropout, LayerNorm
from videomae_jax.precision import FLOAT32
from videomae_jax.pretrainer import VideoPretrainer


class VideoClassifier(nn.Module):
    """Clips [B, T, H, W, C] -> logits [B, num_labels].

    Mean over tokens, then `fc_norm`; or, when `config.use_mean_pooling` is False, the first token
    of the normed ones. With `num_labels` 0 the pooled features [B, D] themselves.
    """

    config: VideoMAEConfig
    dtype: Any = FLOAT32
    attention_backend: str | None = None
    unroll: int = 1
    drop_path: float = 0.0
    head_dropout: float = 0.0
    remat: bool = False

    def setup(self):
        config = self.config
        self.encoder = VideoEncoder(
            config, self.dtype, self.attention_backend, self.unroll, self.drop_path, self.remat
        )
        if config.use_mean_pooling:
            self.fc_norm = LayerNorm(config.fc_norm_eps)
        self.head_drop = Dropout(self.head_dropout)
        if config.num_labels:
            self.classifier = Dense(config.num_labels, config.initializer_range, FLOAT32)

    def __call__(self, clips: Array | np.ndarray) -> Float32[Array, "B labels"]:
        pooled = self.pool(self.encoder(clips))
        return self.classifier(self.head_drop(pooled)) if self.config.num_labels else pooled

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
