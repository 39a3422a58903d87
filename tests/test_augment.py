import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.configs import TINY
from videomae_jax.training.augment import augment
from videomae_jax.training.randaugment import OPERATIONS
from videomae_jax.training.settings import Augment

ROOT = Path(__file__).parents[1]
BATCH, CANVAS = 4, (15, 26)
SHAPE = (BATCH, TINY.num_frames, *CANVAS, 3)
FRAMES = np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)
SIZES = np.array([[30, 50], [64, 40], [15, 26], [33, 90]], np.int32)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
NOTHING = Augment(crop="centre")
EVERYTHING = Augment(
    randaugment="rand-m7-n2-mstd0.5-inc1", crop_area=(0.3, 1.0), flip=0.5, erase=0.5
)


@functools.partial(jax.jit, static_argnames=("settings", "model"))
def jitted(key, frames, sizes, *, settings, model=TINY):
    return augment(key, frames, sizes, settings=settings, model=model, mean=MEAN, std=STD)


def augmented(settings: Augment, *, frames=FRAMES, sizes=SIZES, seed: int = 0) -> np.ndarray:
    clips = jitted(jax.random.key(seed), frames, sizes, settings=settings)
    assert clips.shape == (len(frames), *TINY.clip_shape)
    assert clips.dtype == jnp.float32
    return np.asarray(clips)


def normalised(frames: np.ndarray) -> np.ndarray:
    return (frames / 255 - np.array(MEAN)) / np.array(STD)


def of_the_models_size(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frames on a canvas as large as the model, of videos that were as large."""
    height, width = TINY.image_size
    return values[:, :, :height, :width], np.tile(np.int32([height, width]), (len(values), 1))


def test_with_everything_off_it_is_the_normalised_pixels():
    frames, sizes = of_the_models_size(FRAMES)
    got = augmented(NOTHING, frames=frames, sizes=sizes)
    np.testing.assert_allclose(got, normalised(frames), rtol=0, atol=1e-6)


def test_a_video_of_the_models_aspect_is_seen_whole_however_squeezed():
    """Constant over each half of the height; the border falls between two pixels everywhere."""
    frames = np.zeros((1, TINY.num_frames, 20, 31, 3), np.uint8)
    frames[:, :, :10], frames[:, :, 10:] = 40, 200
    height, width = (7 * side for side in TINY.image_size)
    got = augmented(NOTHING, frames=frames, sizes=np.int32([[height, width]]))
    rows = got[0, 0, :, 0, 0]
    assert (got == got[:, :1, :, :1]).all()
    np.testing.assert_allclose(rows[:5], normalised(np.float64([40] * 3))[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(rows[-5:], normalised(np.float64([200] * 3))[0], rtol=0, atol=1e-5)


def test_the_centre_is_chosen_in_the_video_and_not_in_the_canvas():
    """A bright stripe that fills the centre of a wide video fills what is seen."""
    height, width = TINY.image_size
    frames = np.zeros((1, TINY.num_frames, 24, 40, 3), np.uint8)
    # The video is twice as wide as the model's aspect: of 40 columns, the middle 20 are seen.
    frames[:, :, :, 10:30] = 255
    got = augmented(NOTHING, frames=frames, sizes=np.int32([[height * 5, width * 10]]))
    white = np.broadcast_to(normalised(np.float64([255] * 3)), got.shape)
    np.testing.assert_allclose(got, white, rtol=0, atol=1e-5)
    # Of a video twice as high, all columns are, and the middle half of the rows.
    got = augmented(NOTHING, frames=frames, sizes=np.int32([[height * 10, width * 5]]))
    assert got.min() < 0
    assert (got == got[:, :, :1]).all()


def test_flips_exchange_left_and_right_of_whole_clips():
    frames, sizes = of_the_models_size(np.tile(FRAMES, (10, 1, 1, 1, 1)))
    got = augmented(Augment(crop="centre", flip=0.5), frames=frames, sizes=sizes)
    straight = normalised(frames)
    flipped = [np.allclose(a, b[:, :, ::-1], atol=1e-5) for a, b in zip(got, straight, strict=True)]
    kept = [np.allclose(a, b, atol=1e-5) for a, b in zip(got, straight, strict=True)]
    assert sum(flipped) + sum(kept) == 40
    assert 8 <= sum(flipped) <= 32


def test_erasing_comes_last_on_normalised_values():
    """Noise of deviation 1 whatever mean and deviation of the colours; the rest is untouched."""
    settings = Augment(crop="centre", erase=1.0)
    frames, sizes = of_the_models_size(np.tile(FRAMES, (20, 1, 1, 1, 1)))
    got, untouched = augmented(settings, frames=frames, sizes=sizes), normalised(frames)
    hole = np.abs(got - untouched) > 1e-5
    assert 0.05 < hole.mean() < 0.3
    hole = hole.any((1, 4))
    assert len({one.tobytes() for one in hole}) > 60
    for colour in range(3):
        noise = got[..., colour].transpose(0, 2, 3, 1)[hole]
        assert noise.mean() == pytest.approx(0, abs=0.05)
        assert noise.std() == pytest.approx(1, abs=0.05)


def test_randaugment_comes_first_on_the_canvas(monkeypatch):
    """Inverted before the crop: 255 - value everywhere, which is another clip once normalised."""
    only_invert = {"Invert": OPERATIONS["Invert"]}
    monkeypatch.setattr("videomae_jax.training.randaugment.OPERATIONS", only_invert)
    frames, sizes = of_the_models_size(FRAMES)
    settings = Augment(crop="centre", randaugment="rand-m7-n3-p1-inc1")
    got = augmented(settings, frames=frames, sizes=sizes)
    np.testing.assert_allclose(got, normalised(255 - frames), rtol=0, atol=1e-6)


def test_randaugment_is_told_how_the_canvas_is_squeezed(monkeypatch):
    """A shear of a video squeezed to half its width moves half as many columns a row."""
    only_shear = {"ShearX": OPERATIONS["ShearX"]}
    monkeypatch.setattr("videomae_jax.training.randaugment.OPERATIONS", only_shear)
    height, width = TINY.image_size
    frames = np.zeros((1, TINY.num_frames, height, width, 3), np.uint8)
    frames[:, :, :, : width // 2] = 255
    settings = Augment(crop="centre", randaugment="rand-m10-n1-p1-inc1")

    def slope(sizes):
        """Columns that the border of light and dark moves from the first row to the last."""
        clips = augmented(settings, frames=frames, sizes=np.int32([sizes]))
        # Grey, which comes in from outside, is no brighter than 0.01 here.
        first, last = (np.nonzero(clips[0, 0, row, :, 0] > 0.5)[0].max() for row in (0, -1))
        return abs(int(first) - int(last))

    # The centre crop sees half of the columns of the wide video, twice as large.
    assert slope([height * 4, width * 4]) == pytest.approx(0.3 * height, abs=1)
    assert slope([height * 4, width * 8]) == pytest.approx(0.3 * height, abs=1)


@pytest.mark.parametrize(
    "settings", [dataclasses.replace(EVERYTHING, erase=0.0), Augment(crop="multi_scale")]
)
def test_all_frames_of_a_clip_are_changed_alike_and_clips_are_not(settings):
    still = np.repeat(np.repeat(FRAMES[:1, :1], TINY.num_frames, 1), 8, 0)
    got = augmented(settings, frames=still, sizes=np.tile(SIZES[:1], (8, 1)))
    np.testing.assert_array_equal(got, np.broadcast_to(got[:, :1], got.shape))
    assert len({clip.tobytes() for clip in got}) > 5


def test_the_key_decides_everything():
    first, again, other = (augmented(EVERYTHING, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other).max((1, 2, 3, 4)) > 0.1).all()


def test_a_clip_does_not_depend_on_its_neighbours():
    others = FRAMES.copy()
    others[1:] = 255 - others[1:]
    np.testing.assert_array_equal(augmented(EVERYTHING, frames=others)[0], augmented(EVERYTHING)[0])


def test_everything_stays_in_range():
    settings = dataclasses.replace(EVERYTHING, erase=0.0)
    low, high = normalised(np.zeros(3)), normalised(np.full(3, 255))
    frames, sizes = np.tile(FRAMES, (2, 1, 1, 1, 1)), np.tile(SIZES, (2, 1))
    for seed in range(4):
        # As many clips as above: compiled once.
        got = augmented(settings, frames=frames, sizes=sizes, seed=seed)
        assert (got >= low - 1e-5).all()
        assert (got <= high + 1e-5).all()
        assert got.std() > 0.3


def test_colours_may_be_another_number():
    model = dataclasses.replace(TINY, num_channels=2)
    change = functools.partial(augment, settings=NOTHING, model=model, mean=MEAN[:2], std=STD[:2])
    got = jax.jit(change)(jax.random.key(0), FRAMES[..., :2], SIZES)
    np.testing.assert_allclose(got, augmented(NOTHING)[..., :2], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"frames": FRAMES[:, 1:]},
            r"\[B, T, h, w, C\] = \[B, 6, h, w, 3\], got \[4, 5, 15, 26, 3",
        ),
        ({"frames": FRAMES[..., :2]}, r"got \[4, 6, 15, 26, 2\]"),
        ({"mean": MEAN[:1]}, "mean and std must have 3 numbers each, got 1 and 3"),
        ({"settings": Augment(randaugment="rand-m7")}, "increasing set"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    wanted = {"frames": FRAMES, "mean": MEAN, "std": STD, "settings": NOTHING} | changes
    frames = jnp.asarray(wanted.pop("frames"))
    with pytest.raises(ValueError, match=words):
        augment(jax.random.key(0), frames, jnp.asarray(SIZES), model=TINY, **wanted)


def test_randaugment_is_refused_for_other_colours():
    model = dataclasses.replace(TINY, num_channels=2)
    frames = jnp.asarray(FRAMES[..., :2])
    with pytest.raises(ValueError, match="randaugment needs 3 colours, the model has 2"):
        augment(
            jax.random.key(0),
            frames,
            jnp.asarray(SIZES),
            settings=EVERYTHING,
            model=model,
            mean=MEAN[:2],
            std=STD[:2],
        )


def test_a_sharded_batch_stays_where_it_is_and_gives_the_same_clips():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "tests.augmented_shards"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["devices"] == 4
    assert found["difference"] < 1e-5
    assert found["spec"] == "data"
    assert found["collectives"] == []
