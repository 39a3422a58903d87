"""The "pil" rule against transformers' VideoMAEImageProcessorPil, value for value."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import VideoMAEImageProcessorPil

from convert.preprocessor import read_preprocessor
from videomae_jax.processing import Preprocess

CLIPS = Path(__file__).parents[3] / "shared" / "clips"


def noise(height: int, width: int, *, colours: int = 3) -> np.ndarray:
    """Three frames: noise, a gradient that differs by colour, and a checkerboard."""
    random = np.random.default_rng(height * 1009 + width)
    frames = random.integers(0, 256, (3, height, width, colours), dtype=np.uint8)
    ramp = np.add.outer(np.arange(height) / height, np.arange(width) / width)[..., None]
    frames[1] = (ramp * (127 - 9 * np.arange(colours))).astype(np.uint8)
    frames[2] = (np.indices((height, width)).sum(0) % 2 * 255)[..., None]
    return frames


def reference(processor: VideoMAEImageProcessorPil, frames: np.ndarray) -> np.ndarray:
    values = processor(list(frames), return_tensors="np", input_data_format="channels_last")
    return values["pixel_values"][0].transpose(0, 2, 3, 1)


def assert_same(frames: np.ndarray, **fields) -> None:
    processor = VideoMAEImageProcessorPil(**fields)
    ours = read_preprocessor(json.loads(processor.to_json_string()))(frames)
    np.testing.assert_array_equal(ours, reference(processor, frames))


@pytest.mark.parametrize(
    "size", [(72, 128), (128, 72), (64, 64), (61, 83), (83, 61), (20, 30), (7, 5), (48, 97)]
)
@pytest.mark.parametrize("shortest_edge", [48, 33])
def test_frames_of_all_shapes(size, shortest_edge):
    crop_size = {"height": 33, "width": 48}
    assert_same(noise(*size), size={"shortest_edge": shortest_edge}, crop_size=crop_size)


@pytest.mark.parametrize("crop", [(40, 40), (41, 44), (60, 10), (10, 60), (90, 91), (39, 52)])
def test_crops_larger_than_the_frame_in_one_direction_or_both(crop):
    crop_size = {"height": crop[0], "width": crop[1]}
    assert_same(noise(61, 83), size={"shortest_edge": 39}, crop_size=crop_size)


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize("size", [{"height": 30, "width": 47}, {"shortest_edge": 90}])
def test_filters_shrinking_and_growing(resample, size):
    assert_same(noise(52, 67), size=size, resample=resample, do_center_crop=False)


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_switches(resize, crop, rescale, normalize):
    assert_same(
        noise(52, 67),
        do_resize=resize,
        do_center_crop=crop,
        do_rescale=rescale,
        do_normalize=normalize,
        size={"shortest_edge": 31},
        crop_size={"height": 29, "width": 35},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        rescale_factor=1 / 127.5,
    )


@pytest.mark.parametrize("fields", [{"size": 31}, {"size": (31, 37), "crop_size": 29}])
def test_short_spellings(fields):
    assert_same(noise(52, 67), **fields)


def test_one_colour():
    assert_same(noise(52, 67, colours=1), size=31, image_mean=[0.4], image_std=[0.3])


def test_one_number_for_all_colours():
    assert_same(noise(52, 67), size=31, image_mean=0.4, image_std=0.3)


def test_a_fourth_colour_is_no_alpha():
    """transformers lets Pillow multiply by it; where it is 255 throughout there's no difference."""
    fields = {"size": 31, "image_mean": [0.4, 0.5, 0.6, 0.5], "image_std": [0.3, 0.2, 0.1, 0.5]}
    frames = noise(52, 67, colours=4)
    frames[..., 3] = 255
    assert_same(frames, **fields)


def test_saved_file(tmp_path):
    VideoMAEImageProcessorPil(crop_size=(64, 96)).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert read_preprocessor(fields) == Preprocess(crop_size={"height": 64, "width": 96})


def test_the_class_default():
    assert read_preprocessor(VideoMAEImageProcessorPil().to_dict()) == Preprocess.default(224)


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no real clips at {CLIPS}")
@pytest.mark.parametrize("name", ["water_bottle_drumming.mp4", "bigbuckbunny.mp4"])
def test_real_frames(name):
    with av.open(CLIPS / name) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = np.stack(decoded[:: len(decoded) // 4])
    assert_same(frames)
    assert_same(frames, size=96, crop_size=(112, 96), resample=3)
