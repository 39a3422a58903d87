"""Videos -> packed shards -> the same batches, without decoding; and what is damaged is named."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.clips import write_clip
from tests.test_input import CONFIG, batches, same
from videomae_jax.training import packed
from videomae_jax.training.examples import Examples, read_examples, rows_of_split, splits_of
from videomae_jax.training.input import make_input
from videomae_jax.training.listing import ExamplesError, read_rows
from videomae_jax.training.pack import pack
from videomae_jax.training.settings import Input
from videomae_jax.video import VideoError, each_frame, read_frames
from videomae_jax.writing import CheckpointError

ROOT = Path(__file__).parents[1]
CANVAS, COUNT = 32, 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of two classes and splits; more than there are shards at the least."""
    folder = tmp_path_factory.mktemp("videos")
    lines = ["path,label,split"]
    for number in range(COUNT):
        # The last are larger.
        size = (64, 48) if number < 17 else (72, 80)
        write_clip(folder / f"{number}.mp4", 5 + number % 6, size=size)
        lines.append(
            f"{number}.mp4,{'up' if number % 2 else 'down'},{'train' if number < 15 else 'val'}"
        )
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def raw(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "raw"
    result = pack(read_rows(folder), out, canvas=CANVAS, workers=2, report=pytest.fail)
    frames = sum(5 + number % 6 for number in range(COUNT))
    assert (result.videos, result.frames, result.failed) == (COUNT, frames, 0)
    return out


def short(folder, canvas=CANVAS, **options):
    """Two of the videos, packed."""
    out = folder / "short"
    paths = folder / "two.txt"
    pack(read_rows(paths), out, canvas=canvas, **options)
    return out


@pytest.fixture
def two(folder, tmp_path):
    (tmp_path / "two.txt").write_text(f"{folder}/4.mp4 1\n{folder}/18.mp4 0\n")
    return tmp_path


def damaged(out, place, shard=0):
    """Some bytes of a shard are others; the length is the same."""
    path = out / f"shard-{shard:05d}.array_record"
    content = bytearray(path.read_bytes())
    content[place : place + 64] = bytes(255 - byte for byte in content[place : place + 64])
    path.write_bytes(content)
    packed._reader.cache_clear()
    return path


@pytest.mark.parametrize("train", [True, False])
def test_batches_are_those_from_the_files(folder, raw, train):
    count = 14 if train else None
    for split in ("train", "val", None):
        from_files, from_shards = (read_examples(source, split=split) for source in (folder, raw))
        assert from_shards.packed is not None
        assert from_shards.classes == from_files.classes == ("down", "up")
        same(batches(from_files, count, train=train), batches(from_shards, count, train=train))


def test_workers_read_them_too(raw):
    examples = read_examples(raw)
    same(batches(examples, 4), batches(examples, 4, workers=1))


def test_nothing_is_decoded_any_more(folder, raw, monkeypatch):
    def refuse(*_):
        raise AssertionError("a video is opened")

    monkeypatch.setattr("videomae_jax.decoders.decoder", refuse)
    monkeypatch.setattr("videomae_jax.training.clips.read_chosen", refuse)
    assert len(batches(read_examples(raw), 3)) == 3


def test_what_stands_in_the_folder(folder, raw):
    names = sorted(path.name for path in raw.iterdir())
    shards = [name for name in names if name.startswith("shard-")]
    assert len(shards) == 10
    assert names == sorted([*shards, "examples.parquet", "index.json"])
    table = pq.read_table(raw / "examples.parquet").to_pydict()
    assert table["path"] == [str(folder / f"{number}.mp4") for number in range(COUNT)]
    assert table["frames"] == [5 + number % 6 for number in range(COUNT)]
    assert (table["height"][0], table["width"][0]) == (48, 64)
    assert (table["height"][-1], table["width"][-1]) == (80, 72)
    assert splits_of(raw) == ("train", "val")
    index = json.loads((raw / "index.json").read_text())
    assert [shard["name"] for shard in index["shards"]] == shards
    assert index["canvas"] == [CANVAS, CANVAS]


def test_the_shards_are_the_same_with_any_number_of_workers(folder, raw, tmp_path):
    pack(read_rows(folder), tmp_path / "again", canvas=CANVAS, workers=1)
    for path in raw.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_jpeg_is_near_and_smaller(folder, two):
    # Pictures as large as videos have them; the files' headers are most of a small JPEG.
    out = short(two, canvas=256, encoding="jpeg")
    exact = read_examples(two / "two.txt")
    settings = Input(batch_size=2, canvas=256)
    found = []
    for examples in (exact, read_examples(out)):
        source = make_input(examples, settings, CONFIG, train=True, seed=1)
        found.append([next(source) for _ in range(3)])
        source.close()
    for one, other in zip(*found, strict=True):
        difference = np.abs(one.pop("frames").astype(int) - other.pop("frames"))
        # Sharp edges of black and white, and of red and blue: no picture is worse.
        assert 0 < difference.mean() < 4
        same([one], [other])
    raw = two / "raw"
    pack(read_rows(two / "two.txt"), raw, canvas=256)
    sizes = [sum(path.stat().st_size for path in each.iterdir()) for each in (out, raw)]
    assert sizes[0] < sizes[1] / 4


def test_quality_decides(two):
    small = pack(read_rows(two / "two.txt"), two / "a", canvas=128, encoding="jpeg", quality=5)
    large = pack(read_rows(two / "two.txt"), two / "b", canvas=128, encoding="jpeg", quality=95)
    frames = [read_examples(two / name).packed.frames(0, np.arange(9)) for name in "ab"]
    exact = [np.asarray(frame) for frame in each_frame(read_rows(two / "two.txt").paths[0])]
    assert len(exact) == 9
    assert small.frames == large.frames
    assert not np.array_equal(*frames)


def test_labels_of_every_kind_stay(folder, tmp_path):
    for text, kind in (("1;0", "multi"), ("0.5", "regression"), ("3", "single")):
        source = tmp_path / f"{kind}.txt"
        source.write_text(f"{folder}/0.mp4 {text}\n{folder}/1.mp4 {text}\n")
        pack(read_rows(source), tmp_path / kind, canvas=8)
        one, other = (read_examples(each, kind=kind) for each in (source, tmp_path / kind))
        np.testing.assert_array_equal(one.labels, other.labels, strict=True)
        assert one.num_labels == other.num_labels
    assert read_examples(tmp_path / "multi", kind="none").labels is None


def test_lists_of_names_and_of_numbers(folder, tmp_path):
    (tmp_path / "train.txt").write_text(f"{folder}/0.mp4 1\n")
    lists = {"path": [f"{folder}/1.mp4"], "label": [2]}
    import pyarrow as pa

    pq.write_table(pa.table(lists), tmp_path / "val.parquet")
    pack(read_rows(tmp_path), tmp_path / "out", canvas=8)
    assert read_examples(tmp_path / "out").labels.tolist() == [1, 2]


def test_some_rows(folder, tmp_path):
    rows = rows_of_split(read_rows(folder), "val")
    assert pack(rows, tmp_path / "out", canvas=8).videos == 5
    examples = read_examples(tmp_path / "out")
    assert [Path(path).stem for path in examples.paths] == ["15", "16", "17", "18", "19"]


def test_a_corrupt_video_is_reported_and_left_out(two):
    corrupt = two / "corrupt.mp4"
    content = write_clip(corrupt, 40).read_bytes()
    # Damage in the pictures: frames before it can be decoded.
    middle = content.index(b"mdat") + len(content) // 3
    corrupt.write_bytes(content[:middle] + b"\xff" * 600 + content[middle + 600 :])
    lines = (two / "two.txt").read_text().splitlines()
    (two / "two.txt").write_text("\n".join([lines[0], f"{corrupt} 1", "gone.mp4 0", lines[1]]))
    found = []
    result = pack(read_rows(two / "two.txt"), two / "out", canvas=CANVAS, report=found.append)
    assert (result.videos, result.failed) == (2, 2)
    assert sorted(line.split(":")[0] for line in found) == [str(corrupt), str(two / "gone.mp4")]
    examples = read_examples(two / "out")
    assert examples.labels.tolist() == [1, 0]
    for row, path in enumerate(examples.paths):
        assert examples.packed.frames(row, np.array([2, 0])).shape == (2, CANVAS, CANVAS, 3)
        assert len(list(each_frame(path))) == examples.packed.counts[row]
    with pytest.raises(VideoError, match=r"corrupt.mp4|gone.mp4"):
        pack(read_rows(two / "two.txt"), two / "stop", canvas=CANVAS, on_bad_video="stop")
    assert not (two / "stop").exists()
    assert not [path for path in two.iterdir() if path.name.startswith(".")]


def test_frames_before_damage_belong_to_no_video(two, monkeypatch):
    """As of a file whose damage is met after some frames, between two good ones in a shard."""
    real = each_frame

    def failing(path, **options):
        for number, frame in enumerate(real(path, **options)):
            if path.endswith("/18.mp4") and number == 3:
                raise VideoError(f"{path}: damaged")
            yield frame

    monkeypatch.setattr("videomae_jax.training.pack.each_frame", failing)
    monkeypatch.setattr("videomae_jax.training.pack.FEWEST_SHARDS", 1)
    lines = (two / "two.txt").read_text().splitlines()
    (two / "two.txt").write_text("\n".join([*lines, lines[0]]))
    lines = []
    result = pack(read_rows(two / "two.txt"), two / "out", canvas=CANVAS, report=lines.append)
    assert (result.videos, result.failed, len(lines)) == (2, 1, 1)
    shards = list((two / "out").glob("shard-*"))
    assert len(shards) == 1
    videos = read_examples(two / "out").packed
    np.testing.assert_array_equal(*(videos.frames(row, np.arange(9)) for row in (0, 1)))


def test_none_is_good(tmp_path):
    (tmp_path / "x.txt").write_text("gone.mp4 0\n")
    with pytest.raises(ExamplesError, match=r"x.txt: none of 1 videos can be packed"):
        pack(read_rows(tmp_path / "x.txt"), tmp_path / "out", canvas=8, report=lambda line: None)
    assert not (tmp_path / "out").exists()


def test_a_broken_shard_is_one_line(two):
    out = short(two)
    path = damaged(out, 5000)
    examples = read_examples(out)
    with pytest.raises(VideoError, match=r"shard-00000.array_record: is damaged \(.*\); pack ag"):
        examples.packed.frames(0, np.arange(9))
    lines = []
    found = batches(examples, batch_size=1, train=False, report=lines.append, sampling="ssv2")
    assert [bool(batch["valid"][0]) for batch in found] == [False, True]
    assert lines[0].startswith(f"{path}: is damaged")
    assert "\n" not in lines[0]


def test_damage_anywhere_is_found_or_does_no_harm(two):
    out = short(two)
    whole = read_examples(out).packed.frames(0, np.arange(9))
    path = out / "shard-00000.array_record"
    for place in range(0, path.stat().st_size, 4096):
        keep = path.read_bytes()
        damaged(out, place)
        # Between the records, and behind them, is nothing that is needed.
        with contextlib.suppress(VideoError):
            frames = read_examples(out).packed.frames(0, np.arange(9))
            np.testing.assert_array_equal(frames, whole, err_msg=str(place))
        path.write_bytes(keep)


BROKEN = {
    "cut": (lambda out: cut(out / "shard-00001.array_record"), "has .* of .* bytes; copy it or"),
    "missing": (lambda out: (out / "shard-00001.array_record").unlink(), "00001.* is missing"),
    "no table": (lambda out: (out / "examples.parquet").unlink(), "is damaged .*examples.parquet"),
    "cut table": (lambda out: cut(out / "examples.parquet"), "is damaged .*; pack again"),
    "cut index": (lambda out: cut(out / "index.json"), r"is damaged \(.*\); pack again"),
    "another format": (
        lambda out: other_format(out / "index.json"),
        "index.json is not of the format videomae",
    ),
    "no object": (lambda out: (out / "index.json").write_text("[]"), "is damaged"),
    "nothing in it": (lambda out: (out / "index.json").write_text("{}"), "is not of the format"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def other_format(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "videomae-jax pack 9"}))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_line(two, case):
    out = short(two)
    breaking, message = BROKEN[case]
    breaking(out)
    with pytest.raises(ValueError, match=message) as caught:
        read_examples(out)
    assert str(caught.value).startswith(str(out))
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_is_none(two):
    out = short(two)
    index = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps(index | {"encoding": "jpeg"}))
    with pytest.raises(VideoError, match=r"shard-00000.array_record: is damaged"):
        read_examples(out).packed.frames(0, np.arange(2))


def test_another_canvas_is_refused(raw):
    examples = read_examples(raw)
    with pytest.raises(ValueError, match=r"is packed at 32x32, input.canvas asks for 40x40; set"):
        make_input(examples, Input(batch_size=1, canvas=40), CONFIG, train=True, seed=0)


def test_what_is_killed_leaves_nothing_that_reads_as_whole(folder, tmp_path):
    many = tmp_path / "many.txt"
    many.write_text(f"{folder}/4.mp4 0\n" * 3000)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "videomae_jax", "pack", "--data", str(many), str(out)]
    with subprocess.Popen(
        [*command, "--canvas", "64", "--workers", "1"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while not list(tmp_path.glob(".out.*/shard-00000*")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    (left,) = tmp_path.glob(".out.*")
    assert not (left / "index.json").exists()
    # The next one takes it away.
    many.write_text(f"{folder}/4.mp4 0\n")
    pack(read_rows(many), out, canvas=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many.txt", "out"]


def test_one_that_fails_ends_the_others(folder, tmp_path, monkeypatch):
    def failing(path, **options):
        if path.endswith("/4.mp4"):
            raise OSError(28, "No space left on device")
        while True:
            yield np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr("videomae_jax.training.pack.each_frame", failing)
    with pytest.raises(CheckpointError, match=r"out: can't be written \(No space left on device\)"):
        pack(read_rows(folder), tmp_path / "out", canvas=8, workers=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_line(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("videomae_jax.training.pack._name", lambda shard: "/dev/full")
    with pytest.raises(CheckpointError, match=r"out: can't be written \(.*No space left") as caught:
        pack(read_rows(folder), tmp_path / "out", canvas=8)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canvas": 0}, "canvas must be at least 1, got 0"),
        ({"encoding": "png"}, "must be one of raw, jpeg, got 'png'"),
        ({"quality": 96}, "quality must be 1 to 95, got 96"),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_options_that_can_not_be(folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack(read_rows(folder), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(folder, raw):
    before = sorted(os.listdir(raw))
    with pytest.raises(CheckpointError, match="exists and is left as it is"):
        pack(read_rows(folder), raw, canvas=8)
    assert sorted(os.listdir(raw)) == before
    with pytest.raises(ValueError, match="is packed already; pack what it was made of"):
        pack(read_rows(raw), raw.parent / "twice", canvas=8)


def command(*arguments):
    from videomae_jax.__main__ import main

    return main(["pack", *map(str, arguments)])


def test_the_command(folder, two, capsys):
    with (two / "two.txt").open("a") as file:
        file.write("gone.mp4 0\n")
    assert command("--data", two / "two.txt", two / "out", "--canvas", 16) == 0
    captured = capsys.readouterr()
    gone = two / "gone.mp4"
    assert captured.err == f"videomae: warning: {gone}: doesn't exist; check the path\n"
    assert captured.out == (
        f"{two}/out: 2 videos, 14 frames of 16x16, 0.000 GB, 1 that can't be read left out\n"
    )
    assert len(read_examples(two / "out")) == 2


def test_the_command_takes_a_split(folder, tmp_path, capsys):
    arguments = ["--format", "jpeg", "--quality", 50, "--split", "val", "--canvas", 8]
    assert command("--data", folder, tmp_path / "out", *arguments) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path}/out: 5 videos, ")
    assert json.loads((tmp_path / "out" / "index.json").read_text())["encoding"] == "jpeg"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none.csv", "out"), "none.csv: doesn't exist; check the path"),
        (("--data", "x.txt", "out", "--split", "test"), "x.txt: has no split 'test'"),
        (("--data", "x.txt", "out", "--on-bad-video", "stop"), "gone.mp4: doesn't exist"),
        (("--data", "x.txt", "out", "--canvas", "0"), "canvas must be at least 1, got 0"),
        (("--data", "x.txt", "x.txt"), "x.txt exists and is left as it is"),
    ],
)
def test_the_command_refuses_in_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    Path("x.txt").write_text("gone.mp4 1\n")
    assert command(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"videomae: error: {message}")
    assert error.count("\n") == 1
    assert os.listdir() == ["x.txt"]


def test_each_frame_is_every_frame(folder):
    path = folder / "3.mp4"
    np.testing.assert_array_equal(np.stack(list(each_frame(path))), read_frames(path, range(8)))
    with pytest.raises(VideoError, match="doesn't exist"):
        next(each_frame(folder / "none.mp4"))


def test_a_split_of_what_is_packed_can_be_taken_apart(raw):
    examples = read_examples(raw, split="val")
    assert isinstance(examples, Examples)
    assert examples.packed.counts.tolist() == [5 + number % 6 for number in range(15, COUNT)]
