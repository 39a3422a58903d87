"""The generator of motions: what it writes, and that only motion tells its classes apart."""

import csv

import numpy as np
import pytest

import videomae_jax as vm
from examples.motions.generate import FRAMES, SIDE, generate, label_of, main
from examples.motions.scene import MOTIONS, draw_clip

SEED = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("motions") / "clips"
    assert main([str(out), "--count", "26", "--seed", str(SEED)]) == 0
    return out


def rows(folder):
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_clips_and_a_manifest_are_written(folder):
    found = rows(folder)
    assert len(found) == 26
    assert {path.name for path in folder.glob("*.mp4")} == {row["path"] for row in found}
    assert [row["label"] for row in found] == [label_of(i, SEED) for i in range(26)]
    assert sorted(row["label"] for row in found[:12]) == sorted(MOTIONS)
    assert len(list(folder.iterdir())) == 27


def test_a_clip_is_the_picture_that_was_drawn(folder):
    row = rows(folder)[5]
    drawn = draw_clip(np.random.default_rng((SEED, 1, 5)), row["label"], frames=FRAMES, side=SIDE)
    read = vm.read_clip(folder / row["path"], num_frames=FRAMES)
    assert read.shape == drawn.shape == (FRAMES, SIDE, SIDE, 3)
    # Half the colour is not kept by 4:2:0; brightness is, but for the losses of the codec.
    brightness = [clip.astype(float) @ [0.299, 0.587, 0.114] for clip in (read, drawn)]
    assert np.abs(brightness[0] - brightness[1]).mean() < 6


def test_what_is_missing_is_written_again(folder):
    first, second = (folder / row["path"] for row in rows(folder)[:2])
    kept, before = second.stat().st_mtime_ns, first.read_bytes()
    first.unlink()
    generate(folder, count=26, seed=SEED)
    assert first.read_bytes() == before
    assert second.stat().st_mtime_ns == kept


def test_clips_do_not_depend_on_how_many_there_are():
    assert [label_of(i, 9) for i in range(30)] == [label_of(i, 9) for i in range(40)][:30]
    assert [label_of(i, 9) for i in range(30)] != [label_of(i, 8) for i in range(30)]


def test_the_middle_frame_is_the_same_for_every_motion_but_bouncing():
    # At time 0 everything is where it was drawn; what moves is decided after that.
    middles = {
        motion: draw_clip(np.random.default_rng(4), motion, frames=3, side=48)[1]
        for motion in MOTIONS
        if motion != "bouncing"
    }
    still = middles["standing still"].astype(int)
    for motion, frame in middles.items():
        # The noise of the film comes after the motion was drawn.
        assert np.abs(frame - still).mean() < 4, motion


@pytest.mark.parametrize(
    ("motion", "opposite"),
    [
        ("moving left", "moving right"),
        ("moving up", "moving down"),
        ("coming closer", "going away"),
        ("turning clockwise", "turning anticlockwise"),
        ("meeting", "parting"),
    ],
)
def test_a_motion_backwards_is_its_opposite(motion, opposite):
    forwards = draw_clip(np.random.default_rng(6), motion, frames=7, side=40)
    backwards = draw_clip(np.random.default_rng(6), opposite, frames=7, side=40)[::-1]
    difference = np.abs(forwards.astype(int) - backwards).mean()
    # The camera's trembling is not turned around.
    assert difference < 8 < np.abs(forwards[0].astype(int) - forwards[-1]).mean() + 8
    assert np.abs(forwards[0].astype(int) - backwards[-1]).mean() > 1.5 * difference


def test_still_things_stand_still():
    clip = draw_clip(np.random.default_rng(1), "standing still", frames=5, side=48).astype(int)
    moving = draw_clip(np.random.default_rng(1), "moving left", frames=5, side=48).astype(int)
    assert np.abs(clip[0] - clip[-1]).mean() < 0.5 * np.abs(moving[0] - moving[-1]).mean()


def test_what_cannot_be_is_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="no motion 'dancing'; one of: moving left"):
        draw_clip(np.random.default_rng(0), "dancing")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "out"), "--count", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "generate: error: count must be at least 1 and seed 0, got 0 and 0\n"
    )
