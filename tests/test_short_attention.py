"""The TPU kernel in Pallas's interpreter, which fills what lies outside an array with NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from videomae_jax.kernels import short_attention as module
from videomae_jax.kernels.short_attention import short_attention
from videomae_jax.kernels.short_attention_plan import plan_backward, plan_forward

# Measured up to 1e-6 in float32 and 6e-3 in bfloat16; products summed in bfloat16 give 1e-2.
FLOAT32 = {"values": 2e-6, "gradient": 5e-6}
BFLOAT16 = {"values": 7e-3, "gradient": 7e-3}


def reference(qkv, num_heads: int, scale: float):
    """Head by head, in float32 with exact products."""
    batch, length, packed = qkv.shape
    parts = qkv.astype(jnp.float32).reshape(batch, length, 3, num_heads, packed // 3 // num_heads)
    query, key, value = jnp.moveaxis(parts, 2, 0)
    exact = functools.partial(jnp.einsum, precision="highest")
    weights = jax.nn.softmax(exact("blnk,bmnk->bnlm", query, key) * scale)
    return exact("bnlm,bmnk->blnk", weights, value).reshape(batch, length, packed // 3)


def arrays(batch: int, length: int, num_heads: int, head_width: int, dtype=jnp.float32):
    """A projection and the gradient of a result; scores with a spread of about 2."""
    generator = np.random.default_rng(length)
    width = num_heads * head_width
    qkv = generator.standard_normal((batch, length, 3 * width))
    gradient = generator.standard_normal((batch, length, width))
    return jnp.asarray(qkv, dtype), jnp.asarray(gradient, dtype)


def errors(batch, length, num_heads, head_width, *, dtype=jnp.float32, rows=None, interpret=True):
    """The relative errors of values and gradient, and the largest of a row of either."""
    qkv, cotangent = arrays(batch, length, num_heads, head_width, dtype)
    scale = 2 * head_width**-0.5

    @jax.jit
    def kernel(qkv, cotangent):
        attend = functools.partial(
            short_attention, num_heads=num_heads, scale=scale, rows=rows, interpret=interpret
        )
        values, pull = jax.vjp(attend, qkv)
        return values, pull(cotangent)[0]

    @jax.jit
    def wanted(qkv, cotangent):
        values, pull = jax.vjp(lambda qkv: reference(qkv, num_heads, scale), qkv)
        return values, pull(cotangent.astype(jnp.float32))[0]

    found = {}
    exact = wanted(qkv.astype(jnp.float32), cotangent)
    for name, got, want in zip(("values", "gradient"), kernel(qkv, cotangent), exact, strict=True):
        assert got.dtype == dtype
        # By rows: a wrong last row would be lost among many right ones.
        difference = np.linalg.norm(np.asarray(got, np.float32) - want, axis=-1)
        found[name] = float((difference / np.linalg.norm(want, axis=-1).mean()).max())
    return found


def assert_within(found, limits):
    assert all(found[name] < limit for name, limit in limits.items()), (found, limits)


@settings(max_examples=4)
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 60),
    heads=st.sampled_from(
        [(1, 128), (2, 64), (3, 64), (16, 24), (5, 24), (8, 80), (3, 80), (2, 88), (5, 4), (2, 160)]
    ),
    rows=st.sampled_from([16, 32, None]),
)
@example(batch=1, length=157, heads=(2, 64), rows=64)
@example(batch=1, length=130, heads=(3, 88), rows=48)
# Three blocks of rows reach past the keys, which are padded to 128.
@example(batch=1, length=128, heads=(5, 24), rows=48)
@example(batch=2, length=1, heads=(2, 64), rows=None)
@example(batch=1, length=8, heads=(16, 88), rows=None)
@example(batch=1, length=256, heads=(6, 64), rows=128)
def test_values_and_gradient_in_float32(batch, length, heads, rows):
    assert_within(errors(batch, length, *heads, rows=rows), FLOAT32)


@pytest.mark.parametrize("heads", [(2, 64), (16, 24), (8, 80), (3, 88), (1, 320)])
def test_products_of_bfloat16_are_summed_in_float32(heads):
    assert_within(errors(1, 197, *heads, dtype=jnp.bfloat16, rows=64), BFLOAT16)


@pytest.mark.parametrize(("length", "heads"), [(40, (3, 64)), (130, (5, 24)), (20, (8, 80))])
def test_uninitialised_memory_is_never_used(monkeypatch, length, heads):
    # This interpreter has memory like a TPU's, but effects, which the partitioner refuses.
    monkeypatch.setattr(module, "batch_parallel", lambda function: function)
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    assert_within(errors(2, length, *heads, rows=16, interpret=interpret), FLOAT32)


def test_heads_of_a_padded_width(monkeypatch):
    # Where a block of all heads doesn't fit, heads are padded to a width that divides 128.
    monkeypatch.setattr("videomae_jax.kernels.short_attention_plan.VMEM_BUDGET", 800_000)
    assert plan_forward(40, 16, 88, 4, 16).head_width == 128
    assert plan_backward(40, 16, 88, 4, 16).head_width == 128
    assert_within(errors(1, 40, 16, 88, rows=16), FLOAT32)


def test_large_scores_do_not_overflow():
    qkv, _ = arrays(1, 20, 2, 64)
    assert np.isfinite(short_attention(1e4 * qkv, 2, 0.125, interpret=True)).all()


def test_vmap_and_scan():
    qkv, _ = arrays(4, 10, 2, 64)
    attend = functools.partial(short_attention, num_heads=2, scale=0.1, interpret=True)
    wanted = reference(qkv, 2, 0.1)
    by_clip = jax.vmap(lambda clip: attend(clip[None])[0])(qkv)
    np.testing.assert_allclose(by_clip, wanted, rtol=0, atol=2e-6)
    _, scanned = jax.lax.scan(lambda carry, clip: (carry, attend(clip[None])[0]), None, qkv)
    np.testing.assert_allclose(scanned, wanted, rtol=0, atol=2e-6)


def test_too_long_is_one_line():
    with pytest.raises(ValueError, match=r"no room for 50000 tokens with 6 heads of 64"):
        plan_forward(50_000, 6, 64, 2, None)


@pytest.mark.parametrize("heads", [(6, 64), (16, 24), (16, 64), (16, 80), (16, 88)])
@pytest.mark.parametrize("length", [160, 1568])
def test_every_model_in_bfloat16_is_read_as_it_is(heads, length):
    plan = plan_forward(length, *heads, 2, None)
    assert plan.width == heads[0] * heads[1]
    assert plan.rows >= min(length, 256)
