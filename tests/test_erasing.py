import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.training.erasing import erase, erased_box

FRAMES, HEIGHT, WIDTH, COLOURS = 4, 30, 44, 3
CLIPS = 300


@pytest.fixture(scope="module")
def erased():
    """Constant clips after erasing with certainty: [clips, T, H, W, C]."""
    clip = jnp.full((FRAMES, HEIGHT, WIDTH, COLOURS), 50.0)
    keys = jax.random.split(jax.random.key(0), CLIPS)
    change = jax.jit(lambda keys: jax.lax.map(lambda key: erase(key, clip, probability=1.0), keys))
    return np.asarray(change(keys))


@functools.partial(jax.jit, static_argnums=(1, 2))
def boxes_of(keys, high, wide):
    return jax.vmap(lambda key: erased_box(key, high, wide))(keys)


def test_a_box_is_erased_the_same_in_all_frames_and_colours(erased):
    holes = erased != 50
    assert (holes == holes[:, :1, :, :, :1]).all()
    for hole in holes[:, 0, :, :, 0]:
        rows, columns = np.nonzero(hole.any(1))[0], np.nonzero(hole.any(0))[0]
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert hole.sum() == height * width
    assert len({hole.tobytes() for hole in holes}) > 0.9 * CLIPS


def test_the_noise_is_normal_and_new_everywhere(erased):
    values = erased[erased != 50]
    error = 1 / np.sqrt(values.size)
    assert values.mean() == pytest.approx(0, abs=5 * error)
    assert values.std() == pytest.approx(1, abs=5 * error)
    assert np.mean(np.abs(values) > 1.96) == pytest.approx(0.05, abs=5 * 0.22 * error)
    # No value twice but by chance: neither frames nor colours nor clips share their noise.
    assert np.unique(values).size > 0.9 * values.size
    for axis in (1, 4):
        first, second = (erased.take(index, axis) for index in (0, 1))
        inside = first != 50
        assert abs(np.corrcoef(first[inside], second[inside])[0, 1]) < 0.01


def test_boxes_have_the_published_areas_and_aspects():
    boxes = np.asarray(boxes_of(jax.random.split(jax.random.key(1), 5000), 150, 220)).astype(float)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 150).all()
    assert (left + width <= 220).all()
    shares, aspects = height * width / (150 * 220), height / width
    assert 0.019 < shares.min() < 0.022
    assert 0.31 < shares.max() < 0.336
    assert 0.29 < aspects.min() < 0.33
    assert aspects.max() < 3.45
    for place in (top / (150 - height), left / (220 - width)):
        assert place.mean() == pytest.approx(0.5, abs=0.021)
        assert place.min() == 0
        assert place.max() == 1


def test_small_boxes_are_uniform_in_area_and_log_aspect(monkeypatch):
    """Where every try fits, nothing is skewed by the tries that don't."""
    monkeypatch.setattr("videomae_jax.training.erasing.AREA", (0.02, 0.2))
    boxes = np.asarray(boxes_of(jax.random.split(jax.random.key(2), 5000), 300, 301)).astype(float)
    height, width = boxes[:, 2], boxes[:, 3]
    shares, logs = height * width / (300 * 301), np.log(height / width)
    assert shares.mean() == pytest.approx(0.11, abs=5 * 0.052 / np.sqrt(5000))
    assert shares.std() == pytest.approx(0.18 / np.sqrt(12), rel=0.05)
    assert logs.mean() == pytest.approx(0, abs=5 * 0.695 / np.sqrt(5000))
    assert logs.std() == pytest.approx(2 * np.log(1 / 0.3) / np.sqrt(12), rel=0.05)


def test_nothing_is_erased_where_no_box_fits():
    boxes = boxes_of(jax.random.split(jax.random.key(3), 50), 1, 44)
    assert not np.any(boxes)
    clip = jnp.full((FRAMES, 1, WIDTH, COLOURS), 7.0)
    erased = jax.jit(functools.partial(erase, probability=1.0))(jax.random.key(0), clip)
    np.testing.assert_array_equal(erased, clip)


@pytest.mark.parametrize(("probability", "margin"), [(0.0, 0), (0.25, 0.05), (1.0, 0)])
def test_as_many_clips_are_erased_as_asked_for(probability, margin):
    clip = jnp.full((1, 10, 12, 1), 50.0)
    keys = jax.random.split(jax.random.key(4), 2000)
    change = jax.vmap(lambda key: erase(key, clip, probability=probability))
    changed = (np.asarray(jax.jit(change)(keys)) != 50).any((1, 2, 3, 4))
    assert changed.mean() == pytest.approx(probability, abs=margin)


def test_a_loop_and_vmap_agree():
    clips = jax.random.normal(jax.random.key(5), (6, FRAMES, 12, 20, COLOURS))
    keys = jax.random.split(jax.random.key(6), 6)
    change = functools.partial(erase, probability=0.5)
    looped = jax.jit(lambda *of: jax.lax.map(lambda clip: change(*clip), of))(keys, clips)
    np.testing.assert_array_equal(jax.jit(jax.vmap(change))(keys, clips), looped)
    assert 0 < (looped != clips).any((1, 2, 3, 4)).sum() < 6
