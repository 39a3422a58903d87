import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomae_jax.training.mixing import cut_box, draw_mix, mix, one_hot
from videomae_jax.training.settings import Augment

BATCH, FRAMES, HEIGHT, WIDTH, COLOURS, CLASSES = 5, 2, 22, 30, 3, 7
CLIPS = np.random.default_rng(0).standard_normal(
    (BATCH, FRAMES, HEIGHT, WIDTH, COLOURS), dtype=np.float32
)
LABELS = np.array([3, 0, 6, 1, 1])
TARGETS = np.asarray(one_hot(jnp.asarray(LABELS), CLASSES, smoothing=0.1))
BOTH = Augment(mixup=0.8, cutmix=1.0)


@functools.partial(jax.jit, static_argnames="settings")
def mixed(key, clips, targets, *, settings):
    return mix(key, clips, targets, settings=settings)


def mix_of(seed: int, settings: Augment) -> tuple[np.ndarray, np.ndarray]:
    clips, targets = jnp.asarray(CLIPS), jnp.asarray(TARGETS)
    clips, targets = mixed(jax.random.key(seed), clips, targets, settings=settings)
    return np.asarray(clips), np.asarray(targets)


@functools.partial(jax.jit, static_argnames=("count", "settings"))
def draws(count, settings):
    keys = jax.random.split(jax.random.key(9), count)
    return jax.vmap(lambda key: draw_mix(key, HEIGHT, WIDTH, settings=settings))(keys)


def share_of(seed: int, settings: Augment) -> float:
    """What a target keeps of its own, read from the targets."""
    _, targets = mix_of(seed, settings)
    # Classes 3 and 1 of the first and the last clip are the other's: share * 0.9 + 0.1 / 7.
    return (targets[0, 3] - 0.1 / CLASSES) / 0.9


def test_one_hot_is_smoothed_as_timm_does():
    wanted = np.full((BATCH, CLASSES), 0.1 / CLASSES)
    wanted[np.arange(BATCH), LABELS] = 1 - 0.1 + 0.1 / CLASSES
    np.testing.assert_allclose(TARGETS, wanted, rtol=0, atol=1e-7)
    np.testing.assert_allclose(TARGETS.sum(1), 1, rtol=0, atol=1e-6)
    sharp = one_hot(jnp.asarray(LABELS), CLASSES, smoothing=0.0)
    np.testing.assert_array_equal(sharp, np.eye(CLASSES)[LABELS])
    nowhere = one_hot(jnp.array([-1, CLASSES]), CLASSES, smoothing=0.1)
    np.testing.assert_allclose(nowhere, 0.1 / CLASSES, rtol=0, atol=1e-7)


def test_mixup_is_the_weighted_mean_with_the_reversed_batch():
    settings = Augment(mixup=0.8)
    for seed in range(4):
        share = share_of(seed, settings)
        assert 0 < share < 1
        clips, targets = mix_of(seed, settings)
        wanted = share * CLIPS + (1 - share) * CLIPS[::-1]
        np.testing.assert_allclose(clips, wanted, rtol=0, atol=1e-5)
        wanted = share * TARGETS + (1 - share) * TARGETS[::-1]
        np.testing.assert_allclose(targets, wanted, rtol=0, atol=1e-6)


def test_cutmix_is_a_box_of_the_reversed_batch():
    settings = Augment(cutmix=1.0)
    areas = []
    for seed in range(8):
        clips, targets = mix_of(seed, settings)
        pasted = (clips == CLIPS[::-1]) & (clips != CLIPS)
        # The clip in the middle of an odd batch is its own partner.
        inside = pasted[0, 0, :, :, 0]
        for clip in (0, 1, 3, 4):
            np.testing.assert_array_equal(
                pasted[clip], np.broadcast_to(inside[..., None], pasted.shape[1:])
            )
        np.testing.assert_array_equal(clips[2], CLIPS[2])
        np.testing.assert_array_equal(np.where(pasted, CLIPS, clips), CLIPS)
        assert inside.sum() == inside.any(1).sum() * inside.any(0).sum()
        share = 1 - inside.mean()
        wanted = share * TARGETS + (1 - share) * TARGETS[::-1]
        np.testing.assert_allclose(targets, wanted, rtol=0, atol=1e-6)
        areas.append(inside.sum())
    assert len(set(areas)) > 4


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_a_box_has_the_area_left_and_is_cut_off_at_the_edges(share):
    keys = jax.random.split(jax.random.key(2), 2000)
    draw = jax.jit(jax.vmap(lambda key: cut_box(key, jnp.float32(share), HEIGHT, WIDTH)))
    boxes = np.asarray(draw(keys))
    ratio = np.sqrt(1 - share)
    half_y, half_x = int(HEIGHT * ratio) // 2, int(WIDTH * ratio) // 2
    heights, widths = boxes.any(2).sum(1), boxes.any(1).sum(1)
    np.testing.assert_array_equal(boxes.sum((1, 2)), heights * widths)
    assert heights.max() == min(2 * half_y, HEIGHT)
    assert widths.max() == min(2 * half_x, WIDTH)
    # The smallest has its centre on an edge.
    assert heights.min() == half_y
    assert widths.min() == half_x
    wanted = set()
    for y in range(HEIGHT):
        top, bottom = max(y - half_y, 0), min(y + half_y, HEIGHT)
        wanted.add((top, bottom))
    found = {(int(rows.argmax()), int(rows.argmax() + rows.sum())) for rows in boxes.any(2)}
    assert found == wanted


def test_the_share_of_mixup_is_beta_distributed():
    for alpha in (0.2, 3.0):
        _, shares = map(np.asarray, draws(4000, Augment(mixup=alpha)))
        assert shares.mean() == pytest.approx(0.5, abs=0.04)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_the_share_of_cutmix_is_what_the_box_leaves():
    kept, shares = map(np.asarray, draws(500, Augment(cutmix=1.0)))
    assert set(np.unique(kept)) == {0.0, 1.0}
    np.testing.assert_allclose(shares, kept.mean((1, 2)), rtol=0, atol=1e-6)
    # Uniform before boxes are cut off, and more after.
    assert 0.55 < shares.mean() < 0.75


def test_ways_and_batches_are_chosen_as_often_as_asked_for():
    settings = Augment(mixup=0.8, cutmix=1.0, mix=0.4, mix_switch=0.3)
    kept, shares = map(np.asarray, draws(4000, settings))
    untouched = (kept == 1).all((1, 2))
    cut = (kept == 0).any((1, 2))
    # Some boxes of cutmix are empty.
    assert untouched.mean() == pytest.approx(0.6, abs=0.045)
    assert cut.mean() == pytest.approx(0.12, abs=0.03)
    np.testing.assert_array_equal(shares[untouched], 1)
    np.testing.assert_allclose(shares, kept.mean((1, 2)), rtol=0, atol=1e-6)


def test_nothing_happens_when_it_is_off():
    for settings in (Augment(), Augment(mixup=0.8, cutmix=1.0, mix=0.0)):
        clips, targets = mix_of(0, settings)
        np.testing.assert_array_equal(clips, CLIPS)
        np.testing.assert_array_equal(targets, TARGETS)


def test_the_same_key_mixes_the_same_and_another_does_not():
    first, again, other = (mix_of(seed, BOTH) for seed in (1, 1, 2))
    for index in range(2):
        np.testing.assert_array_equal(first[index], again[index])
        assert not np.array_equal(first[index], other[index])


def test_several_labels_a_clip_and_other_precisions_are_mixed():
    clips = jnp.asarray(CLIPS, jnp.bfloat16)
    targets = jnp.asarray(np.random.default_rng(1).integers(0, 2, (BATCH, CLASSES)), jnp.float32)
    got, mixed_targets = mixed(jax.random.key(1), clips, targets, settings=BOTH)
    assert got.dtype == jnp.bfloat16
    assert mixed_targets.dtype == jnp.float32
    total = np.asarray(targets + targets[::-1])
    np.testing.assert_allclose(mixed_targets + mixed_targets[::-1], total, rtol=0, atol=1e-6)
