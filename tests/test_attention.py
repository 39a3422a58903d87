import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.attention import attend, attention_maps

BATCH, TOKENS, HEADS, HEAD_DIM = 2, 11, 3, 5


@pytest.fixture
def qkv():
    generator = np.random.default_rng(0)
    return generator.standard_normal((BATCH, TOKENS, 3 * HEADS * HEAD_DIM), dtype=np.float32)


def reference(qkv):
    """Head by head in float64."""
    width = HEADS * HEAD_DIM
    mixed = np.zeros((BATCH, TOKENS, width))
    maps = np.zeros((BATCH, HEADS, TOKENS, TOKENS))
    for b in range(BATCH):
        for n in range(HEADS):
            columns = slice(n * HEAD_DIM, (n + 1) * HEAD_DIM)
            query, key, value = (
                qkv[b, :, part * width : (part + 1) * width][:, columns].astype(np.float64)
                for part in range(3)
            )
            scores = query @ key.T / np.sqrt(HEAD_DIM)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            maps[b, n] = weights / weights.sum(-1, keepdims=True)
            mixed[b, :, columns] = maps[b, n] @ value
    return mixed, maps


def test_attention_is_softmax_of_scaled_products(qkv):
    mixed, maps = reference(qkv)
    np.testing.assert_allclose(attend(jnp.asarray(qkv), HEADS), mixed, rtol=0, atol=2e-6)
    np.testing.assert_allclose(attention_maps(jnp.asarray(qkv), HEADS), maps, rtol=0, atol=2e-6)


def test_large_scores_do_not_overflow(qkv):
    assert np.isfinite(attend(jnp.asarray(1e4 * qkv), HEADS)).all()


def test_drop_acts_on_the_weights(qkv):
    seen = []
    dropped = attend(
        jnp.asarray(qkv), HEADS, drop=lambda weights: seen.append(weights) or 0 * weights
    )
    assert seen[0].shape == (BATCH, HEADS, TOKENS, TOKENS)
    np.testing.assert_array_equal(dropped, np.zeros((BATCH, TOKENS, HEADS * HEAD_DIM)))
