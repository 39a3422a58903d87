import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY
from videomae_jax.config import VARIANTS
from videomae_jax.masking import (
    count_masked,
    gather_tokens,
    random_mask,
    running_cell_mask,
    split_mask,
    tube_mask,
)

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


def test_random_masks_have_no_tubes():
    mask = np.asarray(random_mask(jax.random.key(3), TINY, batch=4, ratio=0.6))
    assert (mask.shape, mask.dtype) == ((4, 45), bool)
    assert (mask.sum(-1) == 27).all()
    assert len({row.tobytes() for row in mask}) == 4
    frames = mask.reshape(4, 3, 15)
    assert (frames != frames[:, :1]).any()


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0])
def test_a_random_ratio_that_hides_all_or_nothing_is_refused(ratio):
    with pytest.raises(ValueError, match="of 45 tokens; wanted 1 to 44"):
        random_mask(jax.random.key(0), TINY, ratio=ratio)


def test_the_running_cell_is_a_queue_that_rolls():
    config = dataclasses.replace(TINY, image_size=(16, 24), num_frames=12)
    time, high, wide = config.grid
    masks = np.asarray(running_cell_mask(jax.random.key(0), config, batch=64))
    queue, seen = [1, 1, 0, 0], set()
    for mask in masks.reshape(64, time, high, wide):
        cells = mask.reshape(time, high // 2, 2, wide // 2, 2).transpose(0, 1, 3, 2, 4)
        assert (cells == cells[:, :1, :1]).all()
        first = cells[:, 0, 0].reshape(time, 4)
        (start,) = (s for s in range(4) if (first[0] == np.roll(queue, -s)).all())
        for step in range(time):
            np.testing.assert_array_equal(first[step], np.roll(queue, -start - step))
        seen.add(start)
    assert seen == {0, 1, 2, 3}


def test_the_running_cell_leaves_the_published_number():
    assert count_masked(running_cell_mask(jax.random.key(0), VARIANTS["small"], batch=3)) == 784


def test_cells_need_an_even_grid():
    with pytest.raises(ValueError, match="cells of 2 x 2 need an even number of places, got 3 x 5"):
        running_cell_mask(jax.random.key(0), TINY)
