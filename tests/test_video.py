import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import clips
from videomae_jax import decoders
from videomae_jax.sampling import SAMPLING, sample
from videomae_jax.video import VideoError, count_frames, read_clip, read_frames

SHARED = Path(__file__).parents[2] / "shared" / "clips"
IRREGULAR = [0, 40, 50, 300, 310, 320, 900, *range(1000, 3640, 80)]
RULES = {
    "mp4": {"name": "a.mp4", "count": 60},
    "long group of pictures": {
        "name": "b.mp4",
        "count": 120,
        "options": {"g": "250", "bf": "3", "sc_threshold": "0"},
    },
    "index in front": {
        "name": "c.mp4",
        "count": 40,
        "container_options": {"movflags": "faststart"},
    },
    "fragmented": {
        "name": "d.mp4",
        "count": 40,
        "container_options": {"movflags": "frag_keyframe+empty_moov"},
        "options": {"g": "10"},
    },
    "variable rate": {"name": "e.mp4", "count": len(IRREGULAR), "times": IRREGULAR},
    "mov": {"name": "f.mov", "count": 33},
    "mkv": {"name": "g.mkv", "count": 33},
    "vp9": {"name": "h.webm", "count": 40, "codec": "libvpx-vp9"},
    "vp8 with invisible frames": {
        "name": "i.webm",
        "count": 60,
        "codec": "libvpx",
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "g": "60"},
    },
    "mpeg4 avi": {"name": "j.avi", "count": 40, "codec": "mpeg4"},
    "mjpeg avi": {"name": "k.avi", "count": 30, "codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "avi that promises too many": {"name": "l.avi", "count": 40, "codec": "mpeg4", "lie": 4000},
    "avi that promises too few": {"name": "m.avi", "count": 40, "codec": "mpeg4", "lie": 3},
    "avi that promises none": {"name": "n.avi", "count": 40, "codec": "mpeg4", "lie": 0},
    "10 bits": {"name": "o.mp4", "count": 30, "pix_fmt": "yuv420p10le"},
    "4:4:4": {"name": "p.mp4", "count": 30, "pix_fmt": "yuv444p"},
    "a strange name": {"name": "q: ä 1%03d é.mp4", "count": 30},
    "one frame": {"name": "r.mp4", "count": 1},
}


@pytest.fixture(params=["pyav", "opencv"])
def backend(request, monkeypatch):
    """PyAV, and OpenCV as on a machine without PyAV."""
    if request.param == "opencv":
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "av" else found(name)
        )
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def made(folder):
    """Each clip of `RULES`, made once: (path, count)."""

    def make(kind):
        fields = dict(RULES[kind])
        path, lie = folder / fields.pop("name"), fields.pop("lie", None)
        if not path.exists():
            clips.write_clip(path, **fields)
            if lie is not None:
                clips.lie_about_frames(path, lie)
        return path, fields["count"]

    return make


@pytest.mark.parametrize("kind", RULES)
def test_frames_are_the_ones_asked_for(made, backend, kind):
    path, count = made(kind)
    assert count_frames(path) == count
    wanted = [count - 1, 0, count // 2, 0, count // 3]
    frames = read_frames(path, wanted)
    assert (frames.dtype, frames.shape) == (np.uint8, (5, clips.HEIGHT, clips.WIDTH, 3))
    assert clips.numbers(frames) == wanted
    taken = min(count, 9)
    assert clips.numbers(read_clip(path, taken)) == list(np.arange(taken) * count // taken)


@pytest.mark.parametrize("rule", SAMPLING)
def test_every_sampling_rule_reads_its_frames(made, backend, rule):
    path, count = made("mp4")
    frames = read_clip(path, 7, sampling=rule, rate=3)
    assert clips.numbers(frames) == sample(rule, count, 7, rate=3).tolist()


def test_threads_change_nothing(made):
    path, _ = made("long group of pictures")
    np.testing.assert_array_equal(read_clip(path), read_clip(path, threads=False))


@pytest.mark.parametrize("kind", ["mp4", "vp9", "mpeg4 avi", "10 bits"])
def test_both_decoders_give_the_same_pixels(made, monkeypatch, kind):
    path, _ = made(kind)
    pyav = read_clip(path, 5)
    monkeypatch.setattr(decoders, "decoder", lambda: decoders._opencv_frames)
    apart = np.abs(read_clip(path, 5).astype(int) - pyav)
    if kind == "10 bits":
        # The two scale the colours of deep pictures differently, at their edges.
        assert apart.mean() < 1
    else:
        assert apart.max() == 0


def test_red_is_red(made, backend):
    frame = read_frames(made("4:4:4")[0], [0])[0].astype(int)
    red, blue = frame[30:44, 4:28].mean((0, 1)), frame[30:44, 36:60].mean((0, 1))
    assert red[0] > 200
    assert max(red[1], red[2]) < 60
    assert blue[2] > 200
    assert max(blue[0], blue[1]) < 60


@pytest.mark.parametrize("degrees", clips.MATRICES)
def test_the_rotation_of_a_phone_is_applied(folder, backend, degrees):
    path = clips.write_clip(folder / f"turned{backend}{degrees}.mp4", 20)
    clips.rotate(path, degrees)
    frames = read_clip(path, 4)
    upright = np.rot90(frames, degrees // 90, axes=(1, 2))
    assert upright.shape == (4, clips.HEIGHT, clips.WIDTH, 3)
    assert clips.numbers(upright) == [0, 5, 10, 15]


def test_odd_sizes(folder, backend):
    path = folder / f"odd{backend}.mp4"
    clips.write_clip(path, 5, size=(65, 49), pix_fmt="yuv444p")
    assert read_clip(path, 5).shape == (5, 49, 65, 3)


def test_a_title_that_is_not_utf8(folder, backend):
    path = clips.write_clip(folder / f"title{backend}.mp4", 9, title="caf##")
    path.write_bytes(path.read_bytes().replace(b"caf##", b"caf\xe9!"))
    assert clips.numbers(read_clip(path, 9)) == list(range(9))


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"{SHARED} holds no clips")
@pytest.mark.parametrize(
    ("name", "count", "size"),
    [("water_bottle_drumming.mp4", 100, (512, 512)), ("bigbuckbunny.mp4", 132, (720, 1280))],
)
def test_real_files(monkeypatch, name, count, size):
    assert count_frames(SHARED / name) == count
    frames = read_clip(SHARED / name)
    assert frames.shape == (16, *size, 3)
    monkeypatch.setattr(decoders, "decoder", lambda: decoders._opencv_frames)
    np.testing.assert_array_equal(read_clip(SHARED / name), frames)


def refused(path, capfd, *words, read=read_clip):
    with pytest.raises(VideoError) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    for word in words:
        assert word in text
    assert capfd.readouterr() == ("", "")


def test_what_is_no_file_is_refused(folder, backend, capfd):
    refused(folder / "nowhere.mp4", capfd, "doesn't exist")
    refused(folder, capfd, "is a directory")
    (folder / "empty.mp4").touch()
    refused(folder / "empty.mp4", capfd, "is empty")


def test_a_path_that_can_not_be_looked_at_is_refused(folder, backend, capfd, monkeypatch):
    refused(folder / ("x" * 300), capfd, "can't be read (File name too long)", "path and rights")
    (folder / "file").touch()
    refused(folder / "file" / "clip.mp4", capfd, "can't be read (Not a directory)")

    def without_rights(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", without_rights)
    refused(folder / "clip.mp4", capfd, "can't be read (Permission denied)", "path and rights")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, backend, capfd):
    os.mkfifo(tmp_path / "pipe.mp4")
    refused(tmp_path / "pipe.mp4", capfd, "is no regular file; save the video to one")


@pytest.mark.parametrize(
    "content",
    [
        b"just some text\n" * 50,
        b"\xef\xbb\xbfwith a mark\n",
        bytes(np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8)),
        b"<!DOCTYPE html><html><body>404</body></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n",
    ],
)
def test_what_is_no_video_is_refused(folder, backend, capfd, content):
    (folder / "fake.mp4").write_bytes(content)
    refused(folder / "fake.mp4", capfd, "not a video")


@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_a_playlist_is_not_followed(made, backend, capfd, kind):
    path, _ = made("mp4")
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2.4,\n{path.name}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile {path.name}\n",
    }
    playlist = path.with_name(f"{kind}.mp4")
    playlist.write_text(text[kind])
    refused(playlist, capfd, "not a video")


def test_the_cover_of_a_song_is_no_video(folder, capfd):
    path = clips.write_song(folder / "song.mp3")
    refused(path, capfd, "has no video stream (audio only?)")


@pytest.mark.parametrize(("name", "codec"), [("sound.wav", "pcm_s16le"), ("sound.m4a", "aac")])
def test_sound_alone_is_refused(folder, backend, capfd, name, codec):
    path = folder / name
    if not path.exists():
        clips.write_sound(path, codec)
    refused(path, capfd, "video")


@pytest.mark.parametrize(
    "kind", ["mp4", "index in front", "fragmented", "mov", "mkv", "vp9", "mpeg4 avi"]
)
@pytest.mark.parametrize("kept", [0.01, 0.3, 0.6, 0.95, -1])
def test_a_file_cut_short_is_refused(made, backend, capfd, kind, kept):
    path, _ = made(kind)
    content = path.read_bytes()
    # Of an AVI, the index behind the pictures is no loss.
    whole = content.index(b"idx1") if kind == "mpeg4 avi" else len(content)
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(content[: int(whole * kept) if kept > 0 else whole - 1])
    refused(cut, capfd, "again")


def test_too_few_frames_for_a_rule(made, backend, capfd):
    path, _ = made("mjpeg avi")
    refused(path, capfd, "30 frames", "40", "kinetics", read=lambda p: read_clip(p, 40))
    assert len(read_clip(path, 40, sampling="kinetics")) == 40
    assert clips.numbers(read_clip(path, 32, sampling="ssv2")) == [0, 0, *range(30)]
    refused(path, capfd, "has 30 frames, none at 30", read=lambda p: read_frames(p, [0, 30]))


def test_a_damaged_middle_is_refused(made, backend, capfd):
    path, _ = made("mp4")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 1200
    content[start : start + 400] = bytes(400)
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(content)
    words = "of about 60 frames" if backend == "opencv" else "damaged"
    refused(damaged, capfd, words, "again", read=count_frames)


@pytest.mark.parametrize(
    "call",
    [
        lambda path: read_clip(path, sampling="guess"),
        lambda path: read_clip(path, 0),
        lambda path: read_clip(path, rate=0),
        lambda path: read_frames(path, []),
        lambda path: read_frames(path, [-1]),
    ],
)
def test_requests_that_can_not_be_met_are_no_fault_of_the_file(made, call):
    with pytest.raises(ValueError) as error:
        call(made("mp4")[0])
    assert not isinstance(error.value, VideoError)


def test_without_a_decoder_the_extra_is_named(made, monkeypatch):
    path, _ = made("mp4")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    for read in (read_clip, count_frames):
        with pytest.raises(VideoError, match=r"videomae-jax\[video\]"):
            read(path)
