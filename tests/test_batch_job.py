import random
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest

import videomae_jax as vm
from tests.batch_job import (
    KINDS,
    REAL,
    assert_same,
    corrupt,
    finish,
    last_line,
    rows,
    run,
    start,
    write_clips,
    write_model,
)
from tests.clips import write_clip
from tpu.decoder import Decoder, DecoderError
from videomae_jax.views import Views, read_views


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, 13)
    return folder


def test_a_row_says_what_classify_says(model, clips, tmp_path, capsys):
    assert run(clips, tmp_path / "out", "--model", model, "--batch", 4, "--top-k", 3) == 0
    found = rows(tmp_path / "out")
    checkpoint = vm.load(model)
    assert found["path"].tolist() == sorted(str(path) for path in clips.iterdir())
    for number, row in found.iterrows():
        wanted = vm.classify(checkpoint, vm.read_clip(row["path"], 6), top_k=3)
        assert row["indices"].tolist() == [each.index for each in wanted]
        assert row["labels"].tolist() == [each.label for each in wanted]
        assert row["probabilities"] == pytest.approx(
            [each.probability for each in wanted], abs=1e-6
        )
        assert row["frames"] == 8 + number
        assert row["duration_s"] == pytest.approx((8 + number) / 25, abs=0.1)
        assert row["decode_s"] > 0
    assert found["error"].isna().all()
    assert (found["retries"] == 0).all()
    # Once more: nothing is left to do, and nothing changes.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")}
    capsys.readouterr()
    assert run(clips, tmp_path / "out", "--model", model, "--batch", 4, "--top-k", 3) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("part-*")} == before
    assert last_line(capsys.readouterr().err)["done"] == 13


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_size_of_batches_changes_nothing(model, clips, tmp_path, batch):
    run(clips, tmp_path / "one", "--model", model, "--batch", 4)
    run(clips, tmp_path / "other", "--model", model, "--batch", batch, "--workers", 3)
    assert_same(rows(tmp_path / "one"), rows(tmp_path / "other"))


def test_views_are_merged(model, tmp_path):
    # Square, for several crops.
    from tests.configs import TINY

    folder = tmp_path / "clips"
    write_clips(folder, 5, first=20)
    square = square_model(tmp_path)
    assert run(folder, tmp_path / "out", "--model", square, "--batch", 4, "--views", "3x2") == 0
    checkpoint = vm.load(square)
    views = Views.parse("3x2")
    for _, row in rows(tmp_path / "out").iterrows():
        found = read_views(
            row["path"], TINY.num_frames, preprocess=checkpoint.preprocess, views=views
        )
        variables = {"params": checkpoint.params}
        logits = np.asarray(checkpoint.apply_uint8(variables, found.clips), np.float64)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        wanted = (weights / weights.sum(axis=1, keepdims=True)).mean(axis=0)
        assert len(logits) == 6
        assert row["probabilities"] == pytest.approx(np.sort(wanted)[::-1][:5], abs=1e-6)
        assert row["indices"].tolist() == np.argsort(-wanted)[:5].tolist()


def square_model(folder):
    import dataclasses

    from convert.__main__ import main as convert
    from tests.configs import TINY
    from tests.folders import write_folder

    config = dataclasses.replace(TINY, image_size=(20, 20))
    write_folder(folder / "square-source", config=config)
    assert convert([str(folder / "square-source"), str(folder / "square")]) == 0
    return folder / "square"


def test_crops_that_can_not_be_are_refused_at_the_door(model, clips, tmp_path, capsys):
    assert run(clips, tmp_path / "out", "--model", model, "--views", "1x3") == 2
    assert "3 crops need a square crop_size, the preprocessing has 12x20" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_embeddings(model, clips, tmp_path):
    assert run(clips, tmp_path / "out", "--model", model, "--task", "embed", "--batch", 4) == 0
    checkpoint = vm.load(model)
    found = rows(tmp_path / "out")
    assert "labels" not in found
    for _, row in found.iterrows():
        clip = checkpoint.preprocess(vm.read_clip(row["path"], 6))[None]
        variables = {"params": checkpoint.params}
        tokens = checkpoint.model.apply(variables, clip, method=lambda m, x: m.pool(m.encoder(x)))
        assert row["embedding"] == pytest.approx(np.asarray(tokens[0]), abs=1e-5)
        assert row["embedding"].shape == (24,)


def test_columns_of_the_manifest_pass_through(model, clips, tmp_path):
    paths = sorted(clips.iterdir())[:5]
    table = pd.DataFrame({"label": list("abcde"), "path": paths, "weight": [1.5, None, 2, 3, 4]})
    table["path"] = [path.name for path in paths]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    options = ("--model", model, "--batch", 4, "--root", clips)
    assert run(tmp_path / "manifest.csv", tmp_path / "out", *options) == 0
    found = rows(tmp_path / "out")
    assert found["label"].tolist() == list("abcde")
    assert found["path"].tolist() == [path.name for path in paths]
    assert found["weight"].isna().tolist() == [False, True, False, False, False]
    assert found["error"].isna().all()


def test_only_the_first_then_the_rest(model, clips, tmp_path):
    options = ("--model", model, "--batch", 4)
    assert run(clips, tmp_path / "out", *options, "--limit", 5) == 0
    assert rows(tmp_path / "out")["row"].tolist() == list(range(5))
    assert run(clips, tmp_path / "out", *options) == 0
    assert rows(tmp_path / "out")["row"].tolist() == list(range(13))
    assert len(list((tmp_path / "out").glob("part-*"))) == 2


def test_bad_videos_are_rows(model, tmp_path, capsys):
    paths = write_clips(tmp_path / "clips", 24)
    draw = random.Random(0)
    bad = list(range(1, 24, 3))
    for kind, number in enumerate(bad):
        corrupt(paths[number], kind, draw)
    (tmp_path / "list.txt").write_text("".join(f"clips/{path.name}\n" for path in paths))
    assert run(tmp_path / "list.txt", tmp_path / "out", "--model", model, "--batch", 4) == 0
    found = rows(tmp_path / "out")
    assert len(found) == 24
    assert found.index[found["error"].notna()].tolist() == bad
    assert found["probabilities"].isna().tolist() == found["error"].notna().tolist()
    for error, words in zip(found["error"].dropna(), BAD, strict=True):
        assert words in error
        assert "clip-" not in error
    said = capsys.readouterr().err
    assert last_line(said)["failed"] == KINDS
    assert (
        f"tpu: {KINDS} videos have no answer: see the column `error` in {tmp_path / 'out'};" in said
    )


BAD = [
    "is empty",
    "is cut short",
    "not a video that can be read",
    "is text, not a video",
    "is a directory",
    "has no video stream",
    "",
    "doesn't exist",
]


def test_too_many_failures_end_the_job(model, tmp_path, capsys):
    paths = write_clips(tmp_path / "clips", 40)
    for path in paths[::2]:
        path.unlink()
        path.write_bytes(b"")
    options = ("--model", model, "--batch", 4, "--max-failures", 3)
    assert run(tmp_path / "clips", tmp_path / "out", *options) == 3
    assert "more than --max-failures 3" in capsys.readouterr().err
    found = rows(tmp_path / "out")
    assert 4 <= found["error"].notna().sum() < 20
    assert run(tmp_path / "clips", tmp_path / "out", "--model", model, "--batch", 4) == 0
    assert rows(tmp_path / "out")["error"].notna().sum() == 20


def test_failed_videos_are_done_again_when_asked(model, tmp_path):
    paths = write_clips(tmp_path / "clips", 6)
    whole = paths[1].read_bytes()
    for number in (1, 4):
        paths[number].unlink()
        paths[number].write_bytes(b"")
    again = (tmp_path / "clips", tmp_path / "out", "--model", model, "--batch", 4)
    assert run(*again) == 0
    before = rows(tmp_path / "out")
    assert before.index[before["error"].notna()].tolist() == [1, 4]
    paths[1].write_bytes(whole)
    assert run(*again) == 0
    assert_same(before, rows(tmp_path / "out"))
    assert run(*again, "--retry-failed") == 0
    after = rows(tmp_path / "out")
    assert after["row"].tolist() == list(range(6))
    assert after.index[after["error"].notna()].tolist() == [4]
    assert after["frames"][1] == 9


def test_what_breaks_a_job_off_is_one_line(model, clips, tmp_path, monkeypatch, capsys):
    def start_none(self):
        raise DecoderError("a decode process could not be started (no memory)")

    monkeypatch.setattr(Decoder, "_start", start_none)
    assert run(clips, tmp_path / "out", "--model", model, "--batch", 4) == 1
    assert capsys.readouterr().err == (
        "tpu: error: a decode process could not be started (no memory)\n"
    )


FAULTS = """
import os, signal, sys, time
if "tpu.decode_worker" in sys.orig_argv:
    from tpu.reading import Reading
    read = Reading.read
    def faulty(self, path, clips):
        name = os.path.basename(path)
        if "hang" in name:
            time.sleep(1e6)
        if "crash" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "oom" in name and not os.path.exists(path + ".again"):
            open(path + ".again", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, path, clips)
    Reading.read = faulty
"""


def test_decoders_that_hang_or_crash_cost_one_row(model, tmp_path, monkeypatch):
    folder = tmp_path / "clips"
    paths = write_clips(folder, 12)
    for number, name in ((2, "hang"), (3, "hang"), (5, "crash"), (8, "oom")):
        paths[number].rename(folder / f"{paths[number].stem}-{name}.mp4")
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "sitecustomize.py").write_text(FAULTS)
    environment = {"PYTHONPATH": str(tmp_path / "faults")}
    options = ("--model", model, "--batch", 4, "--decode-timeout", 5)
    code, errors = finish(start(folder, tmp_path / "out", *options, environment=environment))
    assert code == 0, errors
    found = rows(tmp_path / "out")
    assert len(found) == 12
    assert found["error"].dropna().to_dict() == {
        2: "decoding took longer than 5 s and was abandoned",
        3: "decoding took longer than 5 s and was abandoned",
        5: "the decoder died of it (SIGSEGV)",
    }
    # Killed for memory, perhaps: it is worth another attempt.
    assert found["retries"].tolist() == [int(number == 8) for number in range(12)]


def wait_for_parts(out, process):
    while not list(out.glob("part-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def test_sigterm_writes_what_is_done(model, tmp_path):
    folder = tmp_path / "clips"
    write_clips(folder, 400)
    options = ("--model", model, "--batch", 4, "--flush-seconds", 0.3)
    process = start(folder, tmp_path / "out", *options)
    wait_for_parts(tmp_path / "out", process)
    before = len(rows(tmp_path / "out"))
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 0
    assert "stopped by SIGTERM; run the same command again" in errors
    figures = last_line(errors)
    assert figures["event"] == "stopped"
    found = rows(tmp_path / "out")
    assert before <= len(found) == figures["done"] < 400
    code, errors = finish(start(folder, tmp_path / "out", *options))
    assert (code, last_line(errors)["done"]) == (0, 400)
    assert len(rows(tmp_path / "out")) == 400


def test_a_second_run_on_the_same_out_is_refused(model, tmp_path):
    folder = tmp_path / "clips"
    write_clips(folder, 400)
    options = ("--model", model, "--batch", 4, "--flush-seconds", 0.3)
    process = start(folder, tmp_path / "out", *options)
    wait_for_parts(tmp_path / "out", process)
    # Alive, and not done before the other one looks.
    process.send_signal(signal.SIGSTOP)
    code, errors = finish(start(folder, tmp_path / "out", *options))
    process.kill()
    process.communicate()
    assert code == 2
    (line,) = errors.splitlines()
    assert line.startswith("tpu: error: another run writes to this OUT (process ")
    assert str(process.pid) in line


def test_killed_at_random_moments(model, tmp_path):
    """Killed 25 times: nothing lost, nothing twice, and the rows of a run that was let alone."""
    folder = tmp_path / "clips"
    write_clips(folder, 200)
    for path in sorted(REAL.glob("*.mp4")):
        shutil.copy(path, folder)
    assert len(list(folder.iterdir())) == 202
    options = ("--model", model, "--batch", 4)
    assert run(folder, tmp_path / "whole", *options) == 0
    draw = random.Random(0)
    kills = 0
    moments = []
    while kills < 25:
        process = start(folder, tmp_path / "killed", *options, "--flush-seconds", 0.02)
        time.sleep(draw.uniform(0.5, 3.5))
        if process.poll() is not None:
            # Done before its time: begin with a new OUT, so that every kill hits a run.
            process.communicate()
            assert process.returncode == 0
            assert_same(rows(tmp_path / "whole"), rows(tmp_path / "killed"))
            shutil.rmtree(tmp_path / "killed")
            continue
        process.kill()
        process.communicate()
        kills += 1
        moments.append(len(list((tmp_path / "killed").glob("part-*"))))
    # Before, between and after parts.
    assert len(set(moments)) > 3
    code, errors = finish(start(folder, tmp_path / "killed", *options))
    assert code == 0, errors
    assert_same(rows(tmp_path / "whole"), rows(tmp_path / "killed"))


def test_two_thousand_videos_a_tenth_of_them_corrupt(model, tmp_path):
    paths = write_clips(tmp_path / "clips", 2000)
    draw = random.Random(0)
    bad = draw.sample(range(2000), 200)
    for place, number in enumerate(bad):
        corrupt(paths[number], place % KINDS, draw)
    (tmp_path / "list.txt").write_text("".join(f"clips/{path.name}\n" for path in paths))
    options = ("--model", model, "--batch", 16)
    assert run(tmp_path / "list.txt", tmp_path / "out", *options) == 0
    found = rows(tmp_path / "out")
    assert found["row"].tolist() == list(range(2000))
    assert found.index[found["error"].notna()].tolist() == sorted(bad)


def test_bfloat16_says_the_same_where_the_margin_is_wide(model, clips, tmp_path):
    options = ("--model", model, "--batch", 4, "--top-k", 7)
    run(clips, tmp_path / "float32", *options)
    run(clips, tmp_path / "bfloat16", *options, "--dtype", "bfloat16")
    exact, fast = rows(tmp_path / "float32"), rows(tmp_path / "bfloat16")
    wide = exact["probabilities"].map(lambda each: each[0] - each[1] > 0.02)
    assert wide.sum() >= 5
    assert exact["labels"][wide].str[0].tolist() == fast["labels"][wide].str[0].tolist()
    assert not np.array_equal(exact["probabilities"][0], fast["probabilities"][0])


def test_clips_of_a_bucket(model, clips, tmp_path):
    import fsspec

    bucket = fsspec.filesystem("memory")
    for path in sorted(clips.iterdir()):
        bucket.pipe_file(f"/videos/{path.name}", path.read_bytes())
    options = ("--model", model, "--batch", 4)
    try:
        assert run("memory://videos", "memory://results", *options) == 0
        bucket.get("/results", str(tmp_path / "results"), recursive=True)
    finally:
        bucket.store.clear()
        bucket.pseudo_dirs[:] = [""]
    run(clips, tmp_path / "local", *options)
    found = rows(tmp_path / "results")
    assert found["path"].str.startswith("memory://").all()
    assert_same(found, rows(tmp_path / "local"), but=["path"])


def test_a_clip_that_is_too_short_is_a_row(model, tmp_path):
    write_clip(tmp_path / "clips.mp4", 3)
    assert run(tmp_path / "clips.mp4", tmp_path / "out", "--model", model) == 0
    (error,) = rows(tmp_path / "out")["error"]
    assert "it has 3 frames, fewer than the 6" in error
