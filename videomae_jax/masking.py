"""Which tokens are hidden? Masks [B, L], True = hidden, and the index arrays made of them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Int, Shaped

from videomae_jax.config import VideoMAEConfig


def tube_mask(
    key: Array, config: VideoMAEConfig, *, batch: int = 1, ratio: float = 0.9
) -> Bool[Array, "B L"]:
    """Tube masks, True = hidden: a random choice of places for each clip, the same in every frame.

    int(ratio * tokens per frame) places are hidden (MCG-NJU/VideoMAE): of 8 x 14 x 14 tokens, 1408
    are hidden and 160 visible at the published ratio.

    Raises:
        ValueError: if nothing would be hidden, or nothing visible.
    """
    time, high, wide = config.grid
    places = high * wide
    masked = int(ratio * places)
    if not 0 < masked < places:
        raise ValueError(
            f"ratio {ratio} hides {masked} of {places} places; wanted 1 to {places - 1}"
        )
    ranks = jnp.argsort(jax.random.uniform(key, (batch, places)), axis=-1)
    return jnp.tile(ranks < masked, (1, time))


def random_mask(
    key: Array, config: VideoMAEConfig, *, batch: int = 1, ratio: float = 0.9
) -> Bool[Array, "B L"]:
    """Masks without structure, True = hidden: int(ratio * L) of a clip's tokens at random.

    Raises:
        ValueError: if nothing would be hidden, or nothing visible.
    """
    tokens = config.num_tokens
    masked = int(ratio * tokens)
    if not 0 < masked < tokens:
        raise ValueError(
            f"ratio {ratio} hides {masked} of {tokens} tokens; wanted 1 to {tokens - 1}"
        )
    return jnp.argsort(jax.random.uniform(key, (batch, tokens)), axis=-1) < masked


def running_cell_mask(key: Array, config: VideoMAEConfig, *, batch: int = 1) -> Bool[Array, "B L"]:
    """What VideoMAE V2's decoder leaves out, True = left out: half of the tokens, evenly spread.

    A cell of 2 x 2 places holds the queue [1, 1, 0, 0], rolled by one from each step in time to
    the next; the cell is repeated over the frame. Where the queue starts is random for each clip.
    Of 8 x 14 x 14 tokens, 784 are left.

    Raises:
        ValueError: if the grid has an odd height or width.
    """
    time, high, wide = config.grid
    if high % 2 or wide % 2:
        raise ValueError(f"cells of 2 x 2 need an even number of places, got {high} x {wide}")
    start = jax.random.randint(key, (batch, 1, 1), 0, 4)
    turns = jnp.arange(4) + jnp.arange(time)[:, None] + start
    cells = (turns % 4 < 2).reshape(batch, time, 2, 2)
    return jnp.tile(cells, (1, 1, high // 2, wide // 2)).reshape(batch, config.num_tokens)


def count_masked(mask: Bool[Array | np.ndarray, "B L"]) -> int:
    """M: the number of hidden tokens, which must be the same in each row, from a mask of values.

    Raises:
        ValueError: under `jit`, where a mask has no values yet; if rows differ; if a row hides no
            token or every token.
    """
    if isinstance(mask, jax.core.Tracer):
        raise ValueError(
            "inside jit the number of hidden tokens must be known beforehand: "
            "VideoPretrainer(config, num_masked=...)"
        )
    counts = np.unique(np.sum(np.asarray(mask), axis=-1))
    if counts.size != 1:
        raise ValueError(f"each row of mask must hide the same number of tokens, got {counts}")
    if not 0 < counts[0] < mask.shape[-1]:
        raise ValueError(f"mask must hide some of {mask.shape[-1]} tokens, got {counts[0]}")
    return int(counts[0])


def split_mask(
    mask: Bool[Array | np.ndarray, "B L"], num_masked: int
) -> tuple[Int[Array, "B V"], Int[Array, "B M"]]:
    """Indices of visible and of hidden tokens, each ascending: M = num_masked, V = L - M.

    A row that does not hide exactly num_masked tokens raises where the mask has values. Under
    `jit` it can't: its indices then point outside, so that `gather_tokens` gives NaN and not a
    plausible wrong answer.

    Raises:
        ValueError: if a mask with values hides another number of tokens.
    """
    if not isinstance(mask, jax.core.Tracer) and count_masked(mask) != num_masked:
        raise ValueError(f"mask must hide {num_masked} tokens a row, got {count_masked(mask)}")
    tokens = mask.shape[-1]
    order = jnp.argsort(jnp.asarray(mask), axis=-1, stable=True)
    as_said = jnp.sum(jnp.asarray(mask), axis=-1, keepdims=True) == num_masked
    order = jnp.where(as_said, order, tokens)
    return order[:, : tokens - num_masked], order[:, tokens - num_masked :]


def gather_tokens(
    tokens: Shaped[Array, "#B L X"], indices: Int[Array, "B S"]
) -> Shaped[Array, "B S X"]:
    """The tokens at `indices`, row by row; NaN where an index points outside (see `split_mask`)."""
    return jnp.take_along_axis(tokens, indices[..., None], axis=1, mode="fill", fill_value=jnp.nan)
