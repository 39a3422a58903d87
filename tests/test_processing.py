import dataclasses
import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from convert.preprocessor import read_preprocessor
from videomae_jax.processing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    crop_opencv,
    crop_pil,
    resize_opencv,
    resize_pil,
    resized_size,
)

SIDES = st.integers(1, 70)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_cv2(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = cv2.resize(frame, (width, height), interpolation=cv2.INTER_LINEAR)
    return resized.reshape(height, width, frame.shape[-1])


# --- size and crop rules


@pytest.mark.parametrize(
    ("frame", "short", "wanted"),
    [
        ((720, 1280), 224, (224, 398)),  # 398.2
        ((1280, 720), 224, (398, 224)),
        ((512, 512), 224, (224, 224)),
        ((241, 319), 224, (224, 296)),  # 296.5: cut off, not rounded
        ((30, 41), 224, (224, 306)),
        ((224, 300), 224, (224, 300)),
    ],
)
def test_short_side_rule(frame, short, wanted):
    assert resized_size({"shortest_edge": short}, *frame) == wanted


def test_height_and_width_are_taken_as_they_are():
    assert resized_size({"width": 7, "height": 5}, 30, 41) == (5, 7)


@pytest.mark.parametrize(("spare", "start"), [(0, 0), (1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_opencv_crop_rounds_half_to_even(spare, start):
    frame = noise(5 + spare, 9, 3)
    np.testing.assert_array_equal(crop_opencv(frame, 5, 9), frame[start : start + 5])
    turned = frame.transpose(1, 0, 2)
    np.testing.assert_array_equal(crop_opencv(turned, 9, 5), turned[:, start : start + 5])


@pytest.mark.parametrize(("spare", "start"), [(0, 0), (1, 0), (2, 1), (3, 1), (5, 2), (7, 3)])
def test_pil_crop_leaves_the_odd_pixel_at_the_end(spare, start):
    frame = noise(5 + spare, 9, 3)
    np.testing.assert_array_equal(crop_pil(frame, 5, 9), frame[start : start + 5])


@pytest.mark.parametrize(("missing", "start"), [(1, 1), (2, 1), (3, 2)])
def test_pil_crop_pads_with_black_and_the_odd_pixel_at_the_start(missing, start):
    frame = noise(5, 12, 3) | 1
    padded = crop_pil(frame, 5 + missing, 9)
    assert padded.shape == (5 + missing, 9, 3)
    np.testing.assert_array_equal(padded[start : start + 5], frame[:, 1:10])
    assert not padded[:start].any()
    assert not padded[start + 5 :].any()


def test_opencv_crop_refuses_a_smaller_frame():
    small = Preprocess(resize="opencv", size={"shortest_edge": 20})
    with pytest.raises(ValueError, match=r"20x30 .* smaller than crop_size 224x224"):
        small(noise(2, 40, 60, 3))


# --- resizing


@settings(max_examples=120)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from([1, 3, 4]), st.integers(0, 99))
def test_opencv_rule_is_cv2_resize_to_the_last_bit(height, width, high, wide, colours, seed):
    frame = noise(height, width, colours, seed=seed)
    np.testing.assert_array_equal(resize_opencv(frame, high, wide), by_cv2(frame, high, wide))


@pytest.mark.parametrize("size", [(720, 1280), (512, 512), (1280, 720), (241, 319), (100, 140)])
def test_opencv_rule_at_the_sizes_of_videos(size):
    frame = noise(*size, 3)
    height, width = resized_size({"shortest_edge": 224}, *size)
    np.testing.assert_array_equal(resize_opencv(frame, height, width), by_cv2(frame, height, width))


def test_opencv_rule_is_within_one_level_for_two_colours_at_half_size():
    frame = noise(40, 60, 2)
    difference = resize_opencv(frame, 20, 30).astype(int) - by_cv2(frame, 20, 30)
    assert np.abs(difference).max() == 1


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("colours", [1, 2, 3, 4, 5])
def test_pil_rule_resizes_each_colour_as_a_grey_image(colours, resample):
    frame = noise(31, 43, colours)
    resized = resize_pil(frame, 17, 22, resample=resample)
    assert resized.shape == (17, 22, colours)
    for colour in range(colours):
        plane = Image.fromarray(frame[..., colour]).resize((22, 17), resample)
        np.testing.assert_array_equal(resized[..., colour], np.asarray(plane))


def test_the_rules_differ_when_a_frame_shrinks():
    frame = noise(90, 120, 3)
    smooth = resize_pil(frame, 30, 40).astype(float).std()
    assert resize_opencv(frame, 30, 40).astype(float).std() > 1.3 * smooth


# --- the whole way


def test_pixel_values_by_the_formula():
    rule = Preprocess(size={"shortest_edge": 20}, crop_size={"height": 18, "width": 22})
    rule = dataclasses.replace(rule, image_mean=(0.1, 0.2, 0.3), image_std=(2.0, 3.0, 4.0))
    frames = noise(4, 30, 50, 3)
    resized = np.stack([Image.fromarray(frame).resize((33, 20), 2) for frame in frames])
    wanted = (resized[:, 1:19, 5:27] / 255 - [0.1, 0.2, 0.3]) / [2, 3, 4]
    values = rule(frames)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, wanted, rtol=0, atol=1e-7)


def test_original_by_the_formula():
    frames = noise(3, 90, 121, 3)
    resized = np.stack([cv2.resize(frame, (75, 56)) for frame in frames])
    # 75 - 56 = 19 spare columns: int(round(9.5)) = 10.
    wanted = (resized[:, :, 10:66] / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    np.testing.assert_allclose(Preprocess.original(56)(frames), wanted, rtol=0, atol=1e-6)


def test_everything_off_gives_the_frames_back():
    off = Preprocess(do_resize=False, do_center_crop=False, do_rescale=False, do_normalize=False)
    frames = noise(2, 5, 7, 3)
    values = off(frames)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, frames)


@pytest.mark.parametrize("rule", ["pil", "opencv"])
@pytest.mark.parametrize("colours", [1, 2, 4, 5])
def test_other_numbers_of_colours(rule, colours):
    size, crop = {"shortest_edge": 12}, {"height": 12, "width": 10}
    one_for_all = Preprocess(resize=rule, size=size, crop_size=crop, image_mean=0.5, image_std=0.25)
    frames = noise(2, 20, 30, colours)
    values = one_for_all(frames)
    assert values.shape == (2, 12, 10, colours)
    for colour in range(colours):
        grey = frames[..., colour : colour + 1]
        np.testing.assert_array_equal(values[..., colour : colour + 1], one_for_all(grey))


def test_mean_and_std_go_with_their_colours():
    rule = Preprocess(do_resize=False, do_center_crop=False, image_mean=(0.0, 1.0), image_std=2.0)
    values = rule(np.full((1, 3, 4, 2), 255, np.uint8))
    np.testing.assert_array_equal(values[0, 0, 0], np.float32([0.5, 0.0]))


@pytest.mark.parametrize("rule", [Preprocess.default(32), Preprocess.original(32)])
def test_memory_layout_and_threads_do_not_matter(rule):
    frames = noise(6, 80, 50, 3)
    wanted = rule(frames[::2, :, ::-1].copy(), threads=1)
    frames.flags.writeable = False
    np.testing.assert_array_equal(rule(frames[::2, :, ::-1]), wanted)
    np.testing.assert_array_equal(rule(frames[::2, :, ::-1], threads=3), wanted)


@pytest.mark.parametrize(
    ("frames", "got"),
    [
        (np.zeros((2, 5, 7, 3), np.float32), "float32 [2, 5, 7, 3]"),
        (np.zeros((5, 7, 3), np.uint8), "uint8 [5, 7, 3]"),
        (np.zeros((1, 2, 5, 7, 3), np.uint8), "uint8 [1, 2, 5, 7, 3]"),
        (np.zeros((0, 5, 7, 3), np.uint8), "uint8 [0, 5, 7, 3]"),
        (np.zeros((2, 5, 0, 3), np.uint8), "uint8 [2, 5, 0, 3]"),
        (np.zeros((2, 5, 7, 4), np.uint8), "3 colours, as image_mean and image_std, got [2, 5, 7"),
    ],
)
def test_wrong_frames_are_refused(frames, got):
    with pytest.raises(ValueError, match=re.escape(got)):
        Preprocess()(frames)


# --- fields


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"resize": "torch"}, "resize must be 'pil' or 'opencv', got 'torch'"),
        ({"resize": "opencv", "resample": 3}, "needs resample 2 (bilinear), got 3 (bicubic)"),
        ({"do_resize": 1}, "do_resize must be true or false"),
        ({"size": {"shortest_edge": -1}}, "size shortest_edge must be from 1"),
        ({"size": {"shortest_edge": True}}, "size shortest_edge must be from 1"),
        ({"size": {"shortest_edge": 10**400}}, "size shortest_edge must be from 1"),
        ({"size": {"shortest_edge": 224, "height": 3}}, "size must be {shortest_edge} or {height"),
        ({"size": {"longest_edge": 224}}, "size must be {shortest_edge} or {height, width}"),
        ({"size": 224}, "size must be {shortest_edge}"),
        ({"crop_size": {"shortest_edge": 3}}, "crop_size must be {height, width}"),
        ({"crop_size": {"height": 3, "width": 2.5}}, "crop_size width must be from 1"),
        ({"resample": 6}, "resample must be a Pillow filter number"),
        ({"resample": True}, "resample must be a Pillow filter number"),
        ({"rescale_factor": 0}, "rescale_factor must be a positive number"),
        ({"rescale_factor": "1/255"}, "rescale_factor must be a positive number"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std must be a positive number"),
        ({"image_std": [0.5, 0.5]}, "image_mean has 3 numbers, image_std has 2"),
        ({"image_mean": [float("nan")] * 3}, "image_mean must be a number"),
        ({"image_mean": [float("inf")] * 3}, "image_mean must be a number"),
        ({"image_mean": [10**400] * 3}, "image_mean must be a number"),
        ({"image_mean": [True] * 3}, "image_mean must be a number"),
        ({"image_mean": ".5"}, "image_mean must be a number"),
        ({"image_mean": [None] * 3}, "image_mean must be a number"),
        ({"image_mean": [], "image_std": []}, "image_mean must have a number for each colour"),
    ],
)
def test_impossible_fields_are_refused(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Preprocess.from_dict(Preprocess().to_dict() | fields)
    if "resize" not in fields and fields != {"size": 224}:
        with pytest.raises(ValueError, match=re.escape(said)):
            read_preprocessor(fields)


@pytest.mark.parametrize(
    "rule", [Preprocess(), Preprocess.original((32, 48)), Preprocess(image_mean=0.0, image_std=1.0)]
)
def test_dict_and_back(rule):
    assert Preprocess.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_the_constructor_checks_too():
    with pytest.raises(ValueError, match="image_std must be a positive number"):
        Preprocess(image_std=-0.5)


def test_from_dict_is_strict():
    fields = Preprocess().to_dict()
    with pytest.raises(ValueError, match=r"'do_resice' \(did you mean 'do_resize'\?\)"):
        Preprocess.from_dict(fields | {"do_resice": True})
    with pytest.raises(ValueError, match=r"must be a JSON object, got \[\]"):
        Preprocess.from_dict([])
    del fields["size"], fields["resize"]
    with pytest.raises(ValueError, match="lacks resize, size"):
        Preprocess.from_dict(fields)


def test_a_rule_keeps_its_own_size():
    size = {"shortest_edge": 224}
    rule = Preprocess(size=size)
    size["shortest_edge"] = 1
    assert rule.size == {"shortest_edge": 224}


def test_original_and_default():
    original, default = Preprocess.original(96), Preprocess.default(96)
    assert (original.resize, default.resize) == ("opencv", "pil")
    assert (original.image_mean, default.image_mean) == (IMAGENET_MEAN, (0.5, 0.5, 0.5))
    assert (original.image_std, default.image_std) == (IMAGENET_STD, (0.5, 0.5, 0.5))
    assert original.size == default.size == {"shortest_edge": 96}
    assert Preprocess.default() == Preprocess()


@pytest.mark.parametrize("frames", [(50, 80), (80, 50), (60, 60)])
def test_a_crop_that_is_not_square_lies_inside_the_frame(frames):
    values = Preprocess.original((32, 48))(noise(1, *frames, 3) | 1)
    assert values.shape == (1, 32, 48, 3)


def test_check_fits():
    rule = Preprocess.default((192, 224))
    rule.check_fits((192, 224), 3)
    with pytest.raises(ValueError, match=r"192x224 .* image_size is 224x192"):
        rule.check_fits((224, 192), 3)
    with pytest.raises(ValueError, match=r"192x224 .* image_size is 192x192"):
        rule.check_fits(192, 3)
    with pytest.raises(ValueError, match="3 colours, the model's num_channels is 4"):
        rule.check_fits((192, 224), 4)


def test_what_cannot_be_known_fits():
    unknown = Preprocess(do_center_crop=False, do_normalize=False)
    assert unknown.output_size is None
    unknown.check_fits(96, 7)
    squashed = Preprocess(do_center_crop=False, size={"height": 20, "width": 30}, image_mean=0.0)
    assert squashed.output_size == (20, 30)
    assert squashed(noise(1, 9, 8, 3)).shape == (1, 20, 30, 3)


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (
            Preprocess(),
            "short side 224 (pil bilinear, antialiased), centre crop 224x224, "
            "mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        ),
        (
            Preprocess.original((192, 224)),
            "short side 224 (opencv bilinear, not antialiased), centre crop 192x224, "
            "mean 0.485 0.456 0.406, std 0.229 0.224 0.225",
        ),
        (
            Preprocess(
                size={"width": 30, "height": 20},
                resample=0,
                do_center_crop=False,
                rescale_factor=0.01,
                do_normalize=False,
            ),
            "resize to 20x30 (pil nearest, not antialiased), times 0.01, not normalised",
        ),
        (
            Preprocess(do_resize=False, do_rescale=False, image_mean=0.0, image_std=2.5),
            "no resize, centre crop 224x224, no rescale, mean 0, std 2.5",
        ),
    ],
)
def test_describe(rule, line):
    assert rule.describe() == line


# --- Hugging Face files

OLD = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "VideoMAEFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 2,
    "size": 224,
}
VIDEO = {
    "crop_size": {"height": 224, "width": 224},
    "data_format": "channels_first",
    "default_to_square": False,
    "device": None,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": None,
    "do_rescale": True,
    "do_resize": True,
    "do_sample_frames": False,
    "fps": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "input_data_format": None,
    "num_frames": None,
    "pad_size": None,
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "return_metadata": False,
    "size": {"longest_edge": None, "shortest_edge": 224},
    "video_metadata": None,
    "video_processor_type": "VideoMAEVideoProcessor",
}


def test_old_and_new_files():
    old = read_preprocessor(OLD)
    assert old == Preprocess(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    assert read_preprocessor(OLD | {"size": 320}).output_size == (320, 320)
    assert read_preprocessor(VIDEO) == Preprocess()
    assert read_preprocessor({}) == Preprocess()
    assert read_preprocessor(dict.fromkeys(Preprocess().to_dict().keys() - {"resize"})) == (
        Preprocess()
    )


@pytest.mark.parametrize(
    ("fields", "size", "crop"),
    [
        ({"size": 256}, {"shortest_edge": 256}, (224, 224)),
        ({"size": 256, "default_to_square": True}, {"height": 256, "width": 256}, (224, 224)),
        ({"size": [20, 30], "crop_size": [10, 15]}, {"height": 20, "width": 30}, (10, 15)),
        ({"crop_size": 96}, {"shortest_edge": 224}, (96, 96)),
        ({"crop_size": {"width": 96, "height": 64}}, {"shortest_edge": 224}, (64, 96)),
    ],
)
def test_spellings_of_size(fields, size, crop):
    rule = read_preprocessor(fields)
    assert rule.size == size
    assert rule.output_size == crop


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_maen": 0.5}, "unknown preprocessing entry 'image_maen' (did you mean 'image_mean"),
        ({"resize": "pil"}, "unknown preprocessing entry 'resize' (did you mean '"),
        ({"xyz": None}, "unknown preprocessing entry 'xyz'"),
        ({"image_processor_type": "VivitImageProcessor"}, "must be one of VideoMAE's, got 'Vivit"),
        ({"do_pad": True, "pad_size": 300}, "do_pad is not supported"),
        ({"offset": True}, "offset is not supported"),
        ({"size": [224]}, "size must be {shortest_edge}"),
        ({"size": True}, "size shortest_edge must be from 1"),
        ({"size": "224"}, "size must be {shortest_edge}"),
        ({"size": {"max_height": 3, "max_width": 4}}, "size must be {shortest_edge}"),
        ([], "preprocessing must be a JSON object, got []"),
    ],
)
def test_files_that_say_something_else_are_refused(fields, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        read_preprocessor(fields)


@pytest.mark.parametrize(
    "options",
    [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.4, "image_std": 0.3}],
)
@pytest.mark.parametrize("rule", [Preprocess.default, Preprocess.original])
def test_what_is_left_to_the_device(rule, options):
    preprocess = dataclasses.replace(rule(16), **options)
    frames = np.random.default_rng(0).integers(0, 256, (3, 20, 31, 3), dtype=np.uint8)
    resized = preprocess.resized(frames)
    scale, shift = preprocess.normalization()
    assert resized.dtype == np.uint8
    assert scale.dtype == shift.dtype == np.float32
    wanted = preprocess(frames)
    given = resized.astype(np.float32) * scale + shift
    np.testing.assert_allclose(given, wanted, rtol=0, atol=3e-7 * np.abs(wanted).max())
