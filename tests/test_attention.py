import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.attention import attend, attention_maps
from videomae_jax.kernels.cudnn_attention import cudnn_works

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
    assert maps.dtype == jnp.float32
    assert np.isfinite(maps).all()
    if part == 0:
        np.testing.assert_allclose(maps[0, 0, 4], np.full(TOKENS, 1 / TOKENS), rtol=1e-6)
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


# Backends. The kernels for TPU and GPU are tested where they live.

CASES = [
    # tokens, heads, head width: every block alone and several of them, the last one not full.
    (1, 1, 64),
    (2, 3, 24),
    (45, 2, 88),
    (160, 3, 64),
    (391, 1, 80),
    (787, 2, 24),
    (1571, 1, 64),
]


def packed_case(tokens, heads, width, *, batch=2):
    generator = np.random.default_rng([tokens, heads, width])
    shape = (batch, tokens, 3 * heads * width)
    return jnp.asarray(generator.standard_normal(shape, dtype=np.float32))


def relative_error(given, wanted):
    wanted = np.asarray(wanted, np.float64)
    return np.linalg.norm(np.asarray(given, np.float64) - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("angles", [False, True], ids=["lengths", "angles"])
@pytest.mark.parametrize(("tokens", "heads", "width"), CASES)
def test_in_blocks_it_is_the_same_as_at_once(tokens, heads, width, angles):
    qkv = packed_case(tokens, heads, width)
    scale = jnp.linspace(0.5, 3.0, heads) if angles else None
    weights = jnp.cos(jnp.arange(heads * width, dtype=jnp.float32))

    def total(qkv, backend):
        mixed = attend(qkv, heads, logit_scale=scale, backend=backend)
        return (mixed * weights).sum(), mixed

    (_, given), gradient = jax.value_and_grad(total, has_aux=True)(qkv, "blocked")
    (_, wanted), wanted_gradient = jax.value_and_grad(total, has_aux=True)(qkv, "xla")
    assert relative_error(given, wanted) < 2e-6
    assert relative_error(gradient, wanted_gradient) < 5e-6


@pytest.mark.parametrize("backend", ["blocked", "xla"])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(160, 3, 64), (787, 2, 24)])
def test_bfloat16_is_summed_in_float32(backend, tokens, heads, width):
    qkv = packed_case(tokens, heads, width).astype(jnp.bfloat16)

    def total(qkv, backend):
        mixed = attend(qkv, heads, backend=backend)
        return jnp.sum(mixed.astype(jnp.float32) ** 2), mixed

    (_, given), gradient = jax.value_and_grad(total, has_aux=True)(qkv, backend)
    wide = qkv.astype(jnp.float32)
    (_, wanted), wanted_gradient = jax.value_and_grad(total, has_aux=True)(wide, "xla")
    assert given.dtype == gradient.dtype == jnp.bfloat16
    # Rounding once is 1.7e-3; sums of some hundred products in bfloat16 are off by 3e-2.
    assert relative_error(given, wanted) < 4e-3
    assert relative_error(gradient, wanted_gradient) < 1e-2


def test_on_a_cpu_the_default_is_blocked(qkv):
    def program(backend):
        attention = functools.partial(attend, num_heads=HEADS, backend=backend)
        return jax.jit(attention).lower(jnp.asarray(qkv)).compile().as_text()

    def dots(text):
        return sorted(re.findall(r"= (f32\[[\d,]*\])\{[\d,]*\} dot\(", text))

    assert dots(program(None)) == dots(program("blocked")) != dots(program("xla"))


def test_an_unknown_backend_is_refused(qkv):
    with pytest.raises(ValueError, match=re.escape("one of blocked, cudnn, pallas, xla, got 'x'")):
        attend(jnp.asarray(qkv), HEADS, backend="x")


def test_dropout_needs_weights(qkv):
    with pytest.raises(ValueError, match="needs the backend 'xla', got 'blocked'"):
        attend(jnp.asarray(qkv), HEADS, drop=lambda weights: weights, backend="blocked")


def test_without_a_gpu_cudnn_is_xla_and_says_nothing(qkv, caplog):
    packed = jnp.asarray(qkv, jnp.bfloat16)
    given = attend(packed, HEADS, backend="cudnn")
    np.testing.assert_array_equal(given, attend(packed, HEADS, backend="xla"))
    assert not caplog.records


def test_where_cudnn_fails_one_warning_says_why(qkv, caplog, monkeypatch):
    def fails(*_, **__):
        raise NotImplementedError("no engine\nfor this one")

    monkeypatch.setattr(jax, "local_devices", lambda **_: jax.devices())
    monkeypatch.setattr(jax.nn, "dot_product_attention", fails)
    cudnn_works.cache_clear()
    packed = jnp.ones((1, 4, 3 * 2 * 8), jnp.bfloat16)
    try:
        for _ in range(2):
            given = attend(packed, 2, backend="cudnn")
    finally:
        cudnn_works.cache_clear()
    np.testing.assert_array_equal(given, attend(packed, 2, backend="xla"))
    assert [record.getMessage() for record in caplog.records] == [
        "cuDNN's attention doesn't work here (no engine): using XLA's"
    ]


def test_where_cudnn_works_it_gets_what_it_can_do(monkeypatch):
    calls = []
    original = jax.nn.dot_product_attention
    monkeypatch.setattr("videomae_jax.kernels.cudnn_attention.cudnn_works", lambda: True)
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *arrays, scale, implementation: (
            calls.append((arrays[0].shape, arrays[0].dtype.name, scale, implementation))
            or original(*arrays, scale=scale)
        ),
    )
    for dtype, width in ((jnp.bfloat16, 24), (jnp.bfloat16, 5), (jnp.float32, 24)):
        qkv = packed_case(11, 2, width).astype(dtype)
        given = attend(qkv, 2, backend="cudnn").astype(jnp.float32)
        wanted = attend(qkv.astype(jnp.float32), 2, backend="xla")
        assert relative_error(given, wanted) < 1e-2
    assert calls == [((2, 11, 2, 24), "bfloat16", 24**-0.5, "cudnn")]
