import dataclasses
import errno

import numpy as np
import pytest

from tests.clips import write_clip
from videomae_jax import decoders
from videomae_jax.decoders import Film
from videomae_jax.processing import Preprocess
from videomae_jax.resizing import resize_opencv, resize_pil
from videomae_jax.sampling import SAMPLING, crops_along, kinetics_test, ssv2_test
from videomae_jax.video import VideoError, read_clip, read_frames
from videomae_jax.views import Views, merge_views, read_views

SIZE = 24
PIL = Preprocess.default(SIZE)
OPENCV = Preprocess.original(SIZE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """90 frames of 64x48, at 25 a second."""
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", 90)


@pytest.fixture(scope="module")
def tall(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "tall.mp4", 90, size=(40, 70))


@pytest.mark.parametrize("preprocess", [PIL, OPENCV])
@pytest.mark.parametrize("rule", list(SAMPLING))
def test_one_view_is_the_clip(clip, preprocess, rule):
    found = read_views(clip, 5, preprocess=preprocess, views=Views(sampling=rule))
    frames = read_clip(clip, 5, sampling=rule)
    np.testing.assert_array_equal(found.clips, preprocess.resized(frames)[None])
    assert found.frames == 90
    assert found.duration_s == pytest.approx(90 / 25)


@pytest.mark.parametrize(("preprocess", "resize"), [(PIL, resize_pil), (OPENCV, resize_opencv)])
@pytest.mark.parametrize("name", ["clip", "tall"])
@pytest.mark.parametrize(("rule", "text"), [("kinetics", "5x3"), ("ssv2", "2x3"), ("ssv2", "1x2")])
def test_several_views_are_those_of_the_test_protocol(
    request, preprocess, resize, name, rule, text
):
    path = request.getfixturevalue(name)
    views = Views.parse(text, sampling=rule)
    found = read_views(path, 6, preprocess=preprocess, views=views)
    assert found.clips.shape == (views.count, 6, SIZE, SIZE, 3)
    if views.segments == 1:
        segments = np.arange(6)[None] * 15 + 7
    else:
        several = kinetics_test if rule == "kinetics" else ssv2_test
        number = {"segments" if rule == "kinetics" else "clips": views.segments}
        segments = several(90, 6, **number)
    for segment, indices in enumerate(segments):
        frames = read_frames(path, indices)
        high, wide = (24, 32) if name == "clip" else (42, 24)
        small = np.stack([resize(frame, high, wide) for frame in frames])
        for crop, (top, left) in enumerate(crops_along(high, wide, SIZE, crops=views.crops)):
            wanted = small[:, top : top + SIZE, left : left + SIZE]
            given = found.clips[segment * views.crops + crop]
            np.testing.assert_array_equal(given, wanted)


def test_each_frame_is_decoded_and_made_once(clip, monkeypatch):
    decoder, opened, made = decoders.decoder(), [], []

    class Counting:
        def __init__(self, path, threads):
            opened.append(threads)
            self.context = decoder(path, threads)

        def __enter__(self):
            film = self.context.__enter__()
            return Film(self.counted(film.pictures), film.duration_s)

        def __exit__(self, *exception):
            return self.context.__exit__(*exception)

        def counted(self, pictures):
            for index, picture in enumerate(pictures):
                yield lambda index=index, picture=picture: made.append(index) or picture()

    monkeypatch.setattr(decoders, "decoder", lambda: Counting)
    monkeypatch.setattr(decoders, "guess_count", lambda path: 90)
    views = Views(segments=7, crops=3, sampling="kinetics", rate=1)
    read_views(clip, 30, preprocess=PIL, views=views)
    assert opened == [False]
    assert made == sorted(set(views.indices(90, 30).ravel().tolist()))
    # A wrong guess costs a second pass, and nothing else.
    monkeypatch.setattr(decoders, "guess_count", lambda path: 31)
    found = read_views(clip, 30, preprocess=PIL, views=views)
    assert opened == [False] * 3
    assert found.frames == 90


def test_clips_go_where_they_are_wanted(clip):
    out = np.zeros((1, 5, SIZE, SIZE, 3), np.uint8)
    found = read_views(clip, 5, preprocess=PIL, views=Views(), out=out)
    assert found.clips is out
    assert out.any()
    with pytest.raises(ValueError, match=r"gives clips of \[1, 5, 24, 24, 3\], wanted \[1, 4"):
        read_views(clip, 5, preprocess=PIL, views=Views(), out=out[:, :4])


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("5", {}, "views are SEGMENTSxCROPS, as in 5x3, got '5'"),
        ("5x", {}, "got '5x'"),
        ("axb", {}, "got 'axb'"),
        ("0x1", {}, "segments must be at least 1, got 0"),
        ("1x0", {}, "crops must be at least 1, got 0"),
        ("1x1", {"rate": 0}, "rate must be at least 1, got 0"),
        ("1x1", {"sampling": "all"}, "no sampling rule 'all'; one of: uniform, "),
        ("2x1", {"sampling": "uniform"}, "'uniform' has one segment, got 2; kinetics and ssv2"),
    ],
)
def test_views_that_can_not_be(text, options, words):
    with pytest.raises(ValueError, match=r"got|one of") as error:
        Views.parse(text, **options)
    assert words in str(error.value)


def test_views_say_what_they_are():
    assert Views.parse("1x1") == Views()
    assert Views.parse("1x3").sampling == "uniform"
    assert Views.parse("5x3", rate=2) == Views(segments=5, crops=3, sampling="kinetics", rate=2)
    assert str(Views.parse("5x3")) == "5x3"
    assert Views.parse("5x3").count == 15


@pytest.mark.parametrize(
    ("change", "has"),
    [
        ({"crop_size": {"height": 24, "width": 20}}, "24x20"),
        ({"do_center_crop": False}, "none"),
    ],
)
def test_several_crops_are_square(clip, change, has):
    preprocess = dataclasses.replace(PIL, **change)
    with pytest.raises(ValueError, match=f"3 crops need a square crop_size.*{has}"):
        read_views(clip, 5, preprocess=preprocess, views=Views(crops=3))


def test_bad_videos_are_video_errors(tmp_path, clip):
    short = write_clip(tmp_path / "short.mp4", 3)
    for views in (Views(), Views(crops=2)):
        with pytest.raises(VideoError, match=r"short.mp4: it has 3 frames, fewer than the 5"):
            read_views(short, 5, preprocess=PIL, views=views)
    small = dataclasses.replace(OPENCV, do_resize=False, crop_size={"height": 90, "width": 90})
    with pytest.raises(
        VideoError, match=r"clip.mp4: a frame of 48x64 .* is smaller than crop_size"
    ):
        read_views(clip, 5, preprocess=small, views=Views())


def test_what_may_pass_is_told_from_what_does_not(tmp_path, clip, monkeypatch):
    def raise_when_looked_at(number):
        def fail(path):
            raise OSError(number, "trouble")

        monkeypatch.setattr("videomae_jax.video.missing_bytes", fail)
        with pytest.raises(VideoError) as error:
            read_clip(clip, 5)
        return error.value.transient

    assert raise_when_looked_at(errno.EIO)
    assert raise_when_looked_at(errno.ESTALE)
    assert not raise_when_looked_at(errno.EACCES)
    monkeypatch.undo()
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 9)
    for path in (tmp_path / "noise.mp4", tmp_path / "nowhere.mp4"):
        with pytest.raises(VideoError) as error:
            read_clip(path, 5)
        assert not error.value.transient


def test_views_are_merged_after_softmax():
    logits = np.array([[0.0, 1.0, 3.0], [2.0, -1.0, 0.5]], np.float32)
    weights = np.exp(logits.astype(np.float64))
    wanted = (weights[0] / weights[0].sum() + weights[1] / weights[1].sum()) / 2
    np.testing.assert_allclose(merge_views(logits), wanted, rtol=1e-12)
    # Not the softmax of the mean, nor of the sum.
    assert abs(wanted - np.exp(logits.mean(0)) / np.exp(logits.mean(0)).sum()).max() > 0.01
    each = (1 / (1 + np.exp(-logits.astype(np.float64)))).mean(axis=0)
    np.testing.assert_allclose(merge_views(logits, multi_label=True), each, rtol=1e-12)
    assert merge_views(np.array([[1000.0, -1000.0]], np.float32)).tolist() == [1.0, 0.0]
