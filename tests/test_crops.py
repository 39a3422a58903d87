import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from videomae_jax.training.crops import centre_box, cut, multi_scale_box, on_canvas, resized_box

HEIGHT, WIDTH, FRAMES, COLOURS = 22, 31, 5, 3
SHAPE = (9, 14)
COUNT = 3000


def noise(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    shape = (height, width, FRAMES, COLOURS)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@functools.partial(jax.jit, static_argnames=("shape", "antialias"))
def _cut(clip, box, mirrored, *, shape, antialias):
    return cut(clip, box, shape=shape, antialias=antialias, mirrored=mirrored)


def cut_out(clip, box, *, shape=SHAPE, antialias=False, mirrored=False) -> np.ndarray:
    box = jnp.asarray(box, jnp.float32)
    result = _cut(jnp.asarray(clip), box, jnp.asarray(mirrored), shape=shape, antialias=antialias)
    return np.asarray(result)


def interpolated(clip: np.ndarray, wanted: int, axis: int) -> np.ndarray:
    """Bilinear along one axis as torch.nn.functional.interpolate has it, half-pixel centres."""
    length = clip.shape[axis]
    source = np.maximum((np.arange(wanted) + 0.5) * length / wanted - 0.5, 0)
    below = np.floor(source).astype(int)
    above = np.minimum(below + 1, length - 1)
    rest = np.expand_dims(source - below, tuple(range(1, clip.ndim - axis)))
    return clip.take(below, axis) * (1 - rest) + clip.take(above, axis) * rest


def boxes_of(draw, *arguments) -> np.ndarray:
    """Boxes drawn with as many keys."""
    keys = jax.random.split(jax.random.key(7), COUNT)
    return np.asarray(jax.jit(jax.vmap(lambda key: draw(key, *arguments)))(keys), np.float64)


def size_of(height: int, width: int):
    return jnp.array([height, width], jnp.int32)


@pytest.mark.parametrize("shape", [SHAPE, (30, 17), (4, 60)])
def test_a_cut_is_the_box_interpolated(shape):
    clip, (top, left, height, width) = noise(), (3, 6, 16, 21)
    inner = clip[top : top + height, left : left + width].astype(np.float64)
    wanted = interpolated(interpolated(inner, shape[0], 0), shape[1], 1)
    got = cut_out(clip, (top, left, height, width), shape=shape)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("shape", [SHAPE, (30, 17), (4, 60)])
def test_an_antialiased_cut_is_pillows_resize_of_the_box(shape):
    clip, (top, left, height, width) = noise(), (3, 6, 16, 21)
    inner = clip[top : top + height, left : left + width]
    got = cut_out(clip, (top, left, height, width), shape=shape, antialias=True)
    for frame in range(FRAMES):
        image = Image.fromarray(inner[:, :, frame])
        wanted = image.resize(shape[::-1], Image.Resampling.BILINEAR)
        # Pillow rounds after each of its two passes.
        np.testing.assert_allclose(got[:, :, frame], np.asarray(wanted), rtol=0, atol=1.02)


def test_what_fits_is_only_copied():
    clip = noise()
    inner = clip[4 : 4 + SHAPE[0], 6 : 6 + SHAPE[1]]
    for antialias in (False, True):
        got = cut_out(clip, (4, 6, *SHAPE), antialias=antialias)
        np.testing.assert_array_equal(got, inner)


@pytest.mark.parametrize("antialias", [False, True])
def test_mirrored_is_left_and_right_exchanged(antialias):
    box = (2.3, 4.1, 17.2, 20.4)
    straight = cut_out(noise(), box, antialias=antialias)
    mirrored = cut_out(noise(), box, antialias=antialias, mirrored=True)
    np.testing.assert_array_equal(mirrored, straight[:, ::-1])
    assert np.abs(mirrored - straight).max() > 10


def test_a_squeezed_video_is_cut_as_if_it_were_not():
    """Brightness rises evenly over the video, so that squeezing it loses nothing but rounding."""
    size, canvas, box = (60, 90), (44, 36), np.array([11.0, 17.0, 40.0, 52.0])

    def brightness(y, x):
        return 10 + 2 * y + 1.2 * x

    y = (np.arange(canvas[0]) + 0.5)[:, None] * size[0] / canvas[0]
    x = (np.arange(canvas[1]) + 0.5)[None] * size[1] / canvas[1]
    clip = np.rint(brightness(y, x)).astype(np.uint8)[:, :, None, None]
    placed = on_canvas(jnp.asarray(box, jnp.float32), size_of(*size), canvas)
    got = cut_out(clip, placed)[..., 0, 0]
    y = box[0] + (np.arange(SHAPE[0]) + 0.5)[:, None] * box[2] / SHAPE[0]
    x = box[1] + (np.arange(SHAPE[1]) + 0.5)[None] * box[3] / SHAPE[1]
    np.testing.assert_allclose(got, brightness(y, x), rtol=0, atol=0.55)


def test_resized_boxes_have_the_area_and_aspect_asked_for():
    area, aspect = (0.2, 0.4), (0.75, 4 / 3)
    draw = functools.partial(resized_box, area=area, aspect=aspect)
    boxes = boxes_of(draw, size_of(300, 200))
    np.testing.assert_array_equal(boxes, np.rint(boxes))
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 200).all()
    shares, logs = height * width / 60000, np.log(width / height)
    # Whole pixels of a side of 100 or more.
    assert shares.min() > area[0] * 0.99
    assert shares.max() < area[1] * 1.01
    assert np.abs(logs).max() < np.log(4 / 3) + 0.01
    # Uniform: mean and deviation to five standard errors.
    assert shares.mean() == pytest.approx(0.3, abs=5 * 0.2 / np.sqrt(12 * COUNT))
    assert shares.std() == pytest.approx(0.2 / np.sqrt(12), rel=0.06)
    assert logs.mean() == pytest.approx(0, abs=5 * 0.575 / np.sqrt(12 * COUNT))
    assert logs.std() == pytest.approx(2 * np.log(4 / 3) / np.sqrt(12), rel=0.06)
    for place in (top / (300 - height), left / (200 - width)):
        assert place.mean() == pytest.approx(0.5, abs=5 / np.sqrt(12 * COUNT))
        assert place.min() < 0.01
        assert place.max() > 0.99


@pytest.mark.parametrize(
    ("size", "wanted"), [((100, 10), (43, 0, 13, 10)), ((12, 100), (0, 42, 12, 16))]
)
def test_where_no_box_fits_it_is_the_centre(size, wanted):
    draw = functools.partial(resized_box, area=(0.9, 1.0), aspect=(0.75, 4 / 3))
    np.testing.assert_array_equal(np.unique(boxes_of(draw, size_of(*size)), axis=0), [wanted])


def test_where_no_box_fits_an_allowed_video_it_is_all_of_it():
    draw = functools.partial(resized_box, area=(1.0, 1.0), aspect=(0.75, 4 / 3))
    boxes = boxes_of(draw, size_of(300, 310))
    whole = (boxes == (0, 0, 300, 310)).all(1)
    assert 0.5 < whole.mean() < 1
    assert (boxes[:, :2] + boxes[:, 2:] <= (300, 310)).all()


@pytest.mark.parametrize(
    ("size", "largest"), [((34, 90), (34, 34 * 14 / 9)), ((300, 91), (91 * 9 / 14, 91))]
)
def test_multi_scale_boxes_are_those_of_the_list(size, largest):
    wanted = set()
    scales = (1, 0.875, 0.75, 0.66)
    for (a, down), (b, across) in itertools.product(enumerate(scales), repeat=2):
        if abs(a - b) > 1:
            continue
        height, width = int(largest[0] * down), int(largest[1] * across)
        step_y, step_x = (size[0] - height) // 4, (size[1] - width) // 4
        corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
        others = [(0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3)]
        for y, x in corners + others:
            wanted.add((y * step_y, x * step_x, height, width))
    boxes = boxes_of(functools.partial(multi_scale_box, shape=SHAPE), size_of(*size))
    found, counts = np.unique(boxes, axis=0, return_counts=True)
    assert {tuple(box) for box in found} == wanted
    _, sizes = np.unique(boxes[:, 2:], axis=0, return_counts=True)
    np.testing.assert_allclose(sizes / COUNT, 0.1, atol=0.03)
    if len(wanted) == 130:
        np.testing.assert_allclose(counts / COUNT, 1 / 130, atol=0.009)


def test_the_largest_scale_of_a_video_of_the_models_aspect_is_all_of_it():
    """Not a pixel less, however float32 rounds."""
    sizes = np.arange(1, 60)[:, None] * SHAPE
    keys = jax.random.split(jax.random.key(3), 60)

    def largest(size):
        boxes = jax.vmap(lambda key: multi_scale_box(key, size, shape=SHAPE))(keys)
        return boxes[:, 2:].max(0)

    found = jax.jit(jax.vmap(largest))(jnp.asarray(sizes, jnp.int32))
    np.testing.assert_array_equal(found, sizes)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((9, 14), (0, 0, 9, 14)), ((27, 62), (0, 10, 27, 42)), ((41, 28), (11.5, 0, 18, 28))],
)
def test_the_centre_is_the_largest_box_of_the_models_aspect(size, wanted):
    box = jax.jit(lambda size: centre_box(size, shape=SHAPE))(size_of(*size))
    np.testing.assert_allclose(box, wanted, rtol=0, atol=1e-4)
