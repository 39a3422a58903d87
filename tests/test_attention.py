import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.attention import attend, attention_maps

BATCH, TOKENS, HEADS, HEAD_DIM = 2, 11, 3, 5
# Factors 2.7, 12.2 and one beyond the largest, 100.
LOGIT_SCALE = np.array([1.0, 2.5, 6.0], np.float32)


@pytest.fixture
def qkv():
    generator = np.random.default_rng(0)
    return generator.standard_normal((BATCH, TOKENS, 3 * HEADS * HEAD_DIM), dtype=np.float32)


def reference(qkv, factors=None):
    """Head by head in float64; by cosines times each head's factor where there are `factors`."""
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
            if factors is not None:
                lengths = np.outer(np.linalg.norm(query, axis=1), np.linalg.norm(key, axis=1))
                scores = factors[n] * (query @ key.T) / lengths
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


def test_cosine_attention_is_softmax_of_cosines_times_a_factor(qkv):
    mixed, maps = reference(qkv, [np.exp(1.0), np.exp(2.5), np.exp(4.6052)])
    given = attend(jnp.asarray(qkv), HEADS, logit_scale=jnp.asarray(LOGIT_SCALE))
    np.testing.assert_allclose(given, mixed, rtol=0, atol=2e-5)
    given = attention_maps(jnp.asarray(qkv), HEADS, logit_scale=jnp.asarray(LOGIT_SCALE))
    np.testing.assert_allclose(given, maps, rtol=0, atol=2e-5)


def test_cosine_attention_knows_no_lengths(qkv):
    longer = qkv.copy()
    longer[..., : 2 * HEADS * HEAD_DIM] *= 1e3
    scale = jnp.asarray(LOGIT_SCALE)
    given = attend(jnp.asarray(longer), HEADS, logit_scale=scale)
    np.testing.assert_allclose(
        given, attend(jnp.asarray(qkv), HEADS, logit_scale=scale), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("part", [0, 1], ids=["query", "key"])
def test_a_zero_vector_has_cosines_of_zero_and_finite_gradients(qkv, part, dtype):
    start = part * HEADS * HEAD_DIM
    qkv[0, 4, start : start + HEAD_DIM] = 0.0
    scale = jnp.asarray(LOGIT_SCALE, dtype)

    def total(qkv):
        return attend(qkv, HEADS, logit_scale=scale).astype(jnp.float32).sum()

    packed = jnp.asarray(qkv, dtype)
    maps = attention_maps(packed, HEADS, logit_scale=scale)
    assert maps.dtype == dtype
    assert np.isfinite(maps.astype(jnp.float32)).all()
    if part == 0:
        np.testing.assert_allclose(
            maps[0, 0, 4].astype(jnp.float32), np.full(TOKENS, 1 / TOKENS), rtol=1e-2
        )
    # The gradient of a zero vector is of the size of 1e12, which float16 doesn't have.
    if dtype != jnp.float16:
        assert np.isfinite(jax.grad(total)(packed).astype(jnp.float32)).all()


def test_half_precision_does_not_overflow_in_lengths(qkv):
    packed = jnp.asarray(300 * qkv, jnp.float16)
    scale = jnp.asarray(LOGIT_SCALE, jnp.float16)
    given = attention_maps(packed, HEADS, logit_scale=scale).astype(jnp.float32)
    _, wanted = reference(qkv, [np.exp(1.0), np.exp(2.5), np.exp(4.6052)])
    np.testing.assert_allclose(given, wanted, rtol=0, atol=0.05)


def test_beyond_the_largest_factor_there_is_nothing_to_learn(qkv):
    def total(scale):
        return (attend(jnp.asarray(qkv), HEADS, logit_scale=scale) ** 2).sum()

    gradient = jax.grad(total)(jnp.asarray(LOGIT_SCALE))
    assert gradient[0] != 0
    assert gradient[1] != 0
    assert gradient[2] == 0
