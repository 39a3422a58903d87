import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videomae_jax import sampling

COUNTS = st.integers(1, 700)
LENGTHS = st.integers(1, 40)
RATES = st.integers(1, 8)


def check(indices, video_frames, num_frames):
    assert indices.dtype == np.int64
    assert indices.shape[-1] == num_frames
    assert (indices >= 0).all()
    assert (indices < video_frames).all()
    assert (np.diff(indices) >= 0).all()


@given(COUNTS, LENGTHS, RATES)
def test_uniform(n, t, r):
    if n < t:
        with pytest.raises(ValueError, match=f"{n} frames, fewer than the {t}"):
            sampling.uniform(n, t, rate=r)
        return
    indices = sampling.uniform(n, t, rate=r)
    check(indices, n, t)
    assert indices.tolist() == [i * n // t for i in range(t)]


@given(COUNTS, LENGTHS, RATES)
def test_linspace(n, t, r):
    if n < t * r:
        with pytest.raises(ValueError, match="fewer than"):
            sampling.linspace(n, t, rate=r)
        return
    indices = sampling.linspace(n, t, rate=r)
    check(indices, n, t)
    assert indices.tolist() == np.linspace(0, t * r - 1, num=t, dtype=np.int64).tolist()


@given(COUNTS, LENGTHS, RATES)
def test_kinetics(n, t, r):
    indices = sampling.kinetics(n, t, rate=r)
    check(indices, n, t)
    if n > t * r:
        end = (t * r + n) // 2
        start = end - t * r
        wanted = [int(min(max(x, start), end - 1)) for x in np.linspace(start, end, t)]
    else:
        own = np.linspace(0, n, num=n // r)
        wanted = [int(min(max(x, 0), n - 1)) for x in [*own, *[n] * (t - n // r)]]
    assert indices.tolist() == wanted


def test_kinetics_by_hand():
    assert np.diff(sampling.kinetics(300, 16)).tolist() == [4, 4, 4, 5] * 3 + [4, 4, 4]
    assert sampling.kinetics(300, 16)[0] == 118


@given(COUNTS, LENGTHS, RATES, st.integers(0, 9))
def test_kinetics_train_is_a_stretch_from_anywhere(n, t, r, seed):
    indices = sampling.kinetics_train(n, t, rate=r, generator=np.random.default_rng(seed))
    check(indices, n, t)
    if n <= t * r:
        assert indices.tolist() == sampling.kinetics(n, t, rate=r).tolist()
    else:
        middle = sampling.kinetics(n, t, rate=r)
        assert indices[-1] - indices[0] == middle[-1] - middle[0]


def test_kinetics_train_starts_everywhere():
    generator = np.random.default_rng(0)
    starts = {int(sampling.kinetics_train(20, 4, generator=generator)[0]) for _ in range(300)}
    # end is drawn from [C, N), as in the original: the last possible stretch is never seen.
    assert starts == set(range(4))


@given(COUNTS, LENGTHS, RATES, st.integers(1, 10))
def test_kinetics_test(n, t, r, segments):
    indices = sampling.kinetics_test(n, t, rate=r, segments=segments)
    assert indices.shape == (segments, t)
    check(indices, n, t)
    every = list(range(0, n, r))
    while len(every) < t:
        every.append(every[-1])
    for k, row in enumerate(indices):
        start = (len(every) - t) // 2
        if segments > 1:
            start = int(k * max(1.0 * (len(every) - t) / (segments - 1), 0))
        assert row.tolist() == every[start : start + t]


@given(COUNTS, LENGTHS, RATES)
def test_ssv2(n, t, r):
    indices = sampling.ssv2(n, t, rate=r)
    check(indices, n, t)
    a = n // t
    wanted = [i * a + a // 2 for i in range(t)] if a else [0] * (t - n) + list(range(n))
    assert indices.tolist() == wanted


@given(COUNTS, LENGTHS, st.integers(0, 9))
def test_ssv2_train_takes_one_of_each_segment(n, t, seed):
    indices = sampling.ssv2_train(n, t, generator=np.random.default_rng(seed))
    check(indices, n, t)
    a = n // t
    if a:
        assert (indices // a == np.arange(t)).all()
    else:
        assert indices.tolist() == [0] * (t - n) + list(range(n))


def test_ssv2_train_takes_any_of_a_segment():
    generator = np.random.default_rng(0)
    seen = np.stack([sampling.ssv2_train(9, 3, generator=generator) for _ in range(99)])
    assert [set(column) for column in seen.T] == [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}]


@given(COUNTS, LENGTHS, st.integers(1, 5))
def test_ssv2_test(n, t, clips):
    indices = sampling.ssv2_test(n, t, clips=clips)
    assert indices.shape == (clips, t)
    check(indices, n, t)
    tick = n / t
    for s, row in enumerate(indices):
        assert row.tolist() == [int(s * tick / clips + tick * i) for i in range(t)]


@given(COUNTS, LENGTHS, RATES, st.integers(0, 9))
def test_pretraining(n, t, r, seed):
    indices = sampling.pretraining(n, t, rate=r, generator=np.random.default_rng(seed))
    check(indices, n, t)
    start = int(indices[0])
    assert start <= max(n - t * r, 0)
    assert indices.tolist() == [min(start + i * r, n - 1) for i in range(t)]


def test_pretraining_starts_everywhere():
    generator = np.random.default_rng(0)
    starts = {int(sampling.pretraining(20, 4, generator=generator)[0]) for _ in range(300)}
    assert starts == set(range(5))


@given(st.integers(1, 400), st.integers(0, 300), st.integers(1, 5), st.booleans())
def test_crops_along_the_longer_side(size, spare, crops, portrait):
    height, width = (size + spare, size) if portrait else (size, size + spare)
    found = sampling.crops_along(height, width, size, crops=crops)
    offsets = [spare // 2] if crops == 1 else [int(s * spare / (crops - 1)) for s in range(crops)]
    for (top, left), offset in zip(found, offsets, strict=True):
        assert math.isclose(max(top, left), offset, abs_tol=1)
        assert 0 <= top <= height - size
        assert 0 <= left <= width - size
        assert (left if portrait else top) == 0


def test_crops_by_hand():
    assert sampling.crops_along(224, 298, 224) == [(0, 0), (0, 37), (0, 74)]
    assert sampling.crops_along(298, 224, 224) == [(0, 0), (37, 0), (74, 0)]
    with pytest.raises(ValueError, match="shorter side must be 224"):
        sampling.crops_along(300, 400, 224)


@pytest.mark.parametrize("rule", sampling.SAMPLING)
def test_sample_is_the_rule_by_name(rule):
    found = sampling.sample(rule, 100, 8, rate=3)
    assert found.tolist() == sampling.SAMPLING[rule](100, 8, rate=3).tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("guess", 9, 3, 1), "'guess'; one of: uniform, linspace, kinetics, ssv2"),
        (("uniform", 9, 0, 1), "num_frames must be at least 1, got 0"),
        (("uniform", 9, 3, 0), "rate must be at least 1, got 0"),
        (("kinetics", 0, 3, 1), "no frames"),
    ],
)
def test_what_can_not_be_sampled(arguments, words):
    rule, video_frames, num_frames, rate = arguments
    with pytest.raises(ValueError, match=words):
        sampling.sample(rule, video_frames, num_frames, rate=rate)
