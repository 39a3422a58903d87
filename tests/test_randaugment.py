import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from videomae_jax.training.randaugment import (
    OPERATIONS,
    Policy,
    draw,
    parse_policy,
    randaugment,
)

HEIGHT, WIDTH, FRAMES = 34, 45, 3
GREY = (128, 128, 128)
NO_STRETCH = jnp.float32(1)


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth waves and noise, each frame and colour in a range of its own: [h, w, T, C]."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    frames = np.empty((height, width, FRAMES, 3))
    for frame in range(FRAMES):
        for colour in range(3):
            wave = np.sin(y / (4 + frame) + colour) * np.cos(x / (5 + colour) + frame)
            low, high = 20 + 15 * frame + 7 * colour, 180 + 20 * frame + 5 * colour
            frames[:, :, frame, colour] = low + (high - low) * (wave + 1) / 2
    return np.clip(frames + generator.normal(0, 8, frames.shape), 0, 255).astype(np.uint8)


CLIP = picture()


def by_pillow(clip: np.ndarray, change) -> np.ndarray:
    frames = [np.asarray(change(Image.fromarray(frame))) for frame in clip.transpose(2, 0, 1, 3)]
    return np.stack(frames).transpose(1, 2, 0, 3)


def affine(*matrix):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=GREY
    )


def solarize_add(addend: int):
    table = [min(255, value + addend) if value < 128 else value for value in range(256)]
    return lambda image: image.point(3 * table)


def posterize(bits: int):
    # Of no bits at all Pillow made black; newer releases refuse to.
    return lambda image: ImageOps.posterize(image, bits) if bits else image.point(768 * [0])


# What each operation is of Pillow's at a level from 0 to 10 and a sign, in timm's words.
PILLOW = {
    "AutoContrast": lambda level, sign: ImageOps.autocontrast,
    "Equalize": lambda level, sign: ImageOps.equalize,
    "Invert": lambda level, sign: ImageOps.invert,
    "Rotate": lambda level, sign: (
        lambda image: image.rotate(sign * level * 3, Image.Resampling.BICUBIC, fillcolor=GREY)
    ),
    "PosterizeIncreasing": lambda level, sign: posterize(4 - int(level / 10 * 4)),
    "SolarizeIncreasing": lambda level, sign: (
        lambda image: ImageOps.solarize(image, 256 - int(level / 10 * 256))
    ),
    "SolarizeAdd": lambda level, sign: solarize_add(int(level / 10 * 110)),
    "ColorIncreasing": lambda level, sign: (
        lambda image: ImageEnhance.Color(image).enhance(1 + sign * level * 0.09)
    ),
    "ContrastIncreasing": lambda level, sign: (
        lambda image: ImageEnhance.Contrast(image).enhance(1 + sign * level * 0.09)
    ),
    "BrightnessIncreasing": lambda level, sign: (
        lambda image: ImageEnhance.Brightness(image).enhance(1 + sign * level * 0.09)
    ),
    "SharpnessIncreasing": lambda level, sign: (
        lambda image: ImageEnhance.Sharpness(image).enhance(1 + sign * level * 0.09)
    ),
    "ShearX": lambda level, sign: affine(1, sign * level * 0.03, 0, 0, 1, 0),
    "ShearY": lambda level, sign: affine(1, 0, 0, sign * level * 0.03, 1, 0),
    "TranslateXRel": lambda level, sign: affine(1, 0, sign * level * 0.045 * WIDTH, 0, 1, 0),
    "TranslateYRel": lambda level, sign: affine(1, 0, 0, 0, 1, sign * level * 0.045 * HEIGHT),
}
# Arithmetic in whole numbers, the same to the last bit.
EXACT = {"Equalize", "Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"}


@functools.partial(jax.jit, static_argnums=0)
def carried_out(name, clip, level, sign, stretch):
    operation = OPERATIONS[name]
    return operation.change(clip, operation.amount(level, sign), stretch)


def ours(name: str, clip: np.ndarray, level: float, sign: float, stretch=NO_STRETCH) -> np.ndarray:
    level, sign = jnp.float32(level), jnp.float32(sign)
    return np.asarray(carried_out(name, jnp.asarray(clip), level, sign, stretch))


@functools.partial(jax.jit, static_argnums=1)
def draws(keys, policy):
    return jax.vmap(lambda key: draw(key, policy=policy))(keys)


def difference(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def test_the_operations_are_timms_increasing_set():
    assert list(OPERATIONS) == list(PILLOW)
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize(("level", "sign"), [(7.3, 1), (7.3, -1), (1.7, -1), (10.0, 1), (0.0, 1)])
@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_is_pillows(name, level, sign):
    wanted = by_pillow(CLIP, PILLOW[name](level, sign))
    got = ours(name, CLIP, level, sign)
    assert got.shape == CLIP.shape
    assert got.dtype == np.uint8
    assert difference(got, wanted) <= (0 if name in EXACT else 1)
    # One level more or less is rounding, not another picture.
    assert np.mean(got != wanted) < 0.02


@pytest.mark.parametrize("name", PILLOW)
def test_an_operation_changes_the_picture(name):
    assert difference(ours(name, CLIP, 7.3, 1), CLIP) > 1


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize", "ContrastIncreasing"])
@pytest.mark.parametrize("kind", ["flat", "two values", "tiny"])
def test_pictures_with_little_in_them(name, kind):
    clip = np.full_like(CLIP, 77)
    if kind == "two values":
        clip[: HEIGHT // 3] = 200
    elif kind == "tiny":
        clip = picture(height=3, width=5)
    wanted = by_pillow(clip, PILLOW[name](7.3, 1))
    assert difference(ours(name, clip, 7.3, 1), wanted) <= (0 if name == "Equalize" else 1)


def test_equalize_of_a_picture_whose_table_would_pass_255():
    # 511 pixels in all but the last value: a step of 2 would be 1.
    clip = np.zeros((32, 16, 2, 3), np.uint8)
    clip.reshape(512, 2, 3)[:, 0] = (np.arange(512) % 250)[:, None]
    clip.reshape(512, 2, 3)[-1] = 255
    wanted = by_pillow(clip, ImageOps.equalize)
    assert difference(ours("Equalize", clip, 0, 1), wanted) == 0


@pytest.mark.parametrize(("name", "axis"), [("ShearX", 1), ("ShearY", 0), ("Rotate", None)])
def test_angles_are_the_videos_whatever_the_canvas(name, axis):
    """A smooth picture squeezed before or after: nearly the same; ignoring the squeeze isn't."""
    y, x = np.mgrid[:90, :120]
    smooth = np.stack([128 + 100 * np.sin(y / 11 + x / 17 + c) for c in range(3)], -1)
    video = np.repeat(smooth.astype(np.uint8)[:, :, None], FRAMES, 2)

    def squeeze(image):
        return image.resize((80, 90), Image.Resampling.BICUBIC)

    wanted = by_pillow(by_pillow(video, PILLOW[name](6.0, 1)), squeeze)
    canvas = by_pillow(video, squeeze)
    # A canvas pixel is 1 pixel of the video high and 1.5 wide.
    got = ours(name, canvas, 6.0, 1, stretch=jnp.float32(1 / 1.5))
    blind = ours(name, canvas, 6.0, 1)
    inside = np.s_[25:-25, 25:-25]
    assert difference(got[inside], wanted[inside]) <= 4
    assert difference(blind[inside], wanted[inside]) > 20


def test_the_policy_is_read():
    wanted = Policy(magnitude=7.0, count=4, deviation=0.5, probability=0.5)
    assert parse_policy("rand-m7-n4-mstd0.5-inc1") == wanted
    assert parse_policy("rand-inc1-mstd0.5-n4-m7") == wanted
    assert parse_policy("rand-inc1") == Policy(
        magnitude=10.0, count=2, deviation=0.0, probability=0.5
    )
    assert parse_policy("rand-m5.5-n1-p0.9-inc1") == Policy(
        magnitude=5.5, count=1, deviation=0.0, probability=0.9
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must read like"),
        ("augmix-m3-w3", "got 'augmix-m3-w3'"),
        ("rand-m7-x2-inc1", "unknown part 'x2'"),
        ("rand-m7-n4-w0-inc1", "unknown part 'w0'"),
        ("rand-m7-n4-mstdhalf-inc1", "unknown part 'mstdhalf'"),
        ("rand-m-inc1", "unknown part 'm'"),
        ("rand--inc1", "unknown part ''"),
        ("rand-m7-m8-inc1", "repeated part 'm8'"),
        ("rand-m7-n4-mstd0.5", "increasing set"),
        ("rand-m7-inc0", "increasing set"),
        ("rand-m11-inc1", "m up to 10"),
        ("rand-p1.5-inc1", "p up to 1"),
        ("rand-n1.5-inc1", "a whole n"),
    ],
)
def test_a_policy_that_is_not_one_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_policy(text)


def test_draws_are_as_the_policy_says():
    policy = parse_policy("rand-m7-n4-mstd0.5-inc1")
    keys = jax.random.split(jax.random.key(0), 5000)
    numbers, levels, signs = map(np.asarray, draws(keys, policy))
    assert numbers.shape == levels.shape == signs.shape == (5000, 4)
    shares = np.bincount(numbers.reshape(-1), minlength=16) / numbers.size
    # 20000 draws: five standard deviations.
    np.testing.assert_allclose(shares[:15], 0.5 / 15, atol=0.0065)
    assert shares[15] == pytest.approx(0.5, abs=0.018)
    assert levels.mean() == pytest.approx(7, abs=0.018)
    assert levels.std() == pytest.approx(0.5, abs=0.013)
    assert set(signs.reshape(-1)) == {-1.0, 1.0}
    assert signs.mean() == pytest.approx(0, abs=0.036)
    for left, right in ((0, 1), (1, 2), (2, 3)):
        assert abs(np.corrcoef(numbers[:, left], numbers[:, right])[0, 1]) < 0.07


def test_levels_stay_between_0_and_10():
    for text, at_limit in (("rand-m10-n4-mstd2-inc1", 10), ("rand-m0-n4-mstd2-inc1", 0)):
        policy = parse_policy(text)
        keys = jax.random.split(jax.random.key(1), 200)
        _, levels, _ = draws(keys, policy)
        assert 0 <= levels.min() <= levels.max() <= 10
        assert np.mean(levels == at_limit) == pytest.approx(0.5, abs=0.1)


def test_operations_are_carried_out_in_the_order_drawn():
    policy = parse_policy("rand-m7-n4-mstd0.5-inc1")
    change = jax.jit(
        lambda key: randaugment(key, jnp.asarray(CLIP), policy=policy, stretch=NO_STRETCH)
    )
    names = list(OPERATIONS)
    carried = 0
    for seed in range(6):
        key = jax.random.key(seed)
        wanted = CLIP
        numbers, levels, signs = draw(key, policy=policy)
        for number, level, sign in zip(numbers, levels, signs, strict=True):
            if number < len(names):
                wanted = ours(names[number], wanted, level, sign)
                carried += 1
        np.testing.assert_array_equal(change(key), wanted)
    assert carried > 6


def test_a_probability_of_0_changes_nothing():
    policy = parse_policy("rand-m7-n4-p0-inc1")
    got = randaugment(jax.random.key(3), jnp.asarray(CLIP), policy=policy, stretch=NO_STRETCH)
    np.testing.assert_array_equal(got, CLIP)
