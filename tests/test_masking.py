import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY
from videomae_jax.config import VARIANTS
from videomae_jax.masking import count_masked, gather_tokens, split_mask, tube_mask

MASK = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 1]], dtype=bool)


def test_indices_are_ascending_and_complete():
    visible, hidden = split_mask(MASK, 3)
    np.testing.assert_array_equal(visible, [[1, 2], [0, 3]])
    np.testing.assert_array_equal(hidden, [[0, 3, 4], [1, 2, 4]])


def test_gathering_equals_boolean_indexing():
    tokens = np.random.default_rng(0).standard_normal((2, 5, 7), dtype=np.float32)
    visible, hidden = split_mask(MASK, 3)
    gathered = gather_tokens(jnp.asarray(tokens), hidden)
    np.testing.assert_array_equal(gathered, tokens[MASK].reshape(2, 3, 7))
    shared = gather_tokens(jnp.asarray(tokens[:1]), visible)
    np.testing.assert_array_equal(shared[1], tokens[0, [0, 3]])


def test_a_wrong_count_raises_with_values_and_is_nan_without():
    with pytest.raises(ValueError, match="must hide 2 tokens a row, got 3"):
        split_mask(MASK, 2)
    uneven = MASK.copy()
    uneven[0] = [True, True, True, True, False]
    tokens = jnp.ones((2, 5, 7))
    hidden = jax.jit(lambda mask: gather_tokens(tokens, split_mask(mask, 3)[1]))(uneven)
    assert np.isnan(hidden[0]).all()
    assert np.isfinite(hidden[1]).all()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0]], "hide some of 5 tokens, got 0"),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], "hide some of 5 tokens, got 5"),
        ([[1, 0, 0, 0, 0], [1, 0, 0, 0, 1]], "same number"),
    ],
)
def test_masks_that_can_not_be_counted(rows, words):
    with pytest.raises(ValueError, match=words):
        count_masked(np.array(rows, bool))


def test_a_traced_mask_has_no_count():
    with pytest.raises(ValueError, match="num_masked"):
        jax.jit(count_masked)(MASK)


def test_tubes_are_the_same_in_every_frame():
    time, high, wide = TINY.grid
    mask = np.asarray(tube_mask(jax.random.key(3), TINY, batch=4, ratio=0.6))
    assert mask.shape == (4, TINY.num_tokens)
    frames = mask.reshape(4, time, high * wide)
    assert (frames == frames[:, :1]).all()
    assert (frames.sum(-1) == int(0.6 * high * wide)).all()
    assert len({row.tobytes() for row in mask}) > 1


def test_the_published_ratio_hides_the_published_number():
    mask = np.asarray(tube_mask(jax.random.key(0), VARIANTS["small"]))
    assert count_masked(mask) == 1408
    assert (~mask).sum() == 160


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0])
def test_a_ratio_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        tube_mask(jax.random.key(0), TINY, ratio=ratio)
