"""Examples -> batches: the same ones for any workers and processes, and from a restored state."""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.clips import write_clip
from videomae_jax.config import VideoMAEConfig
from videomae_jax.resizing import resize_pil
from videomae_jax.sampling import kinetics, ssv2
from videomae_jax.training import input as input_module
from videomae_jax.training.clips import Clips, canvas_of
from videomae_jax.training.examples import Examples, read_examples
from videomae_jax.training.input import make_input, steps_per_epoch
from videomae_jax.training.settings import Input
from videomae_jax.video import VideoError, count_frames, read_frames

CONFIG = VideoMAEConfig(
    image_size=(28, 28),
    patch_size=(14, 14),
    num_frames=4,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
)
CANVAS = 32
ROOT = Path(__file__).parents[1]
COUNT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven videos of two classes; no two have as many frames."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(COUNT):
        place = folder / ("even" if number % 2 == 0 else "odd")
        place.mkdir(exist_ok=True)
        size = (64, 48) if number < 5 else (40, 72)
        write_clip(place / f"{number}.mp4", 17 + 3 * number, size=size)
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    return read_examples(folder)


def batches(examples, count=None, *, batch_size=3, train=True, seed=5, state=None, **options):
    """The first batches, or all."""
    settings = {name: options.pop(name) for name in ("workers", "sampling") if name in options}
    options.setdefault("report", pytest.fail)
    settings = Input(batch_size=batch_size, **settings)
    source = make_input(examples, settings, CONFIG, train=train, seed=seed, **options)
    if state is not None:
        source.set_state(state)
    with contextlib.closing(source):
        return list(source) if count is None else [next(source) for _ in range(count)]


def test_what_nobody_closed_is_never_waited_for_as_garbage(examples):
    settings = Input(batch_size=3)
    source = make_input(examples, settings, CONFIG, train=True, seed=5)
    next(source)
    started = source._source
    del source
    gc.collect()
    assert not started._closed
    started.close()
    input_module._OPEN.discard(started)


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], strict=True)


def joined(parts):
    """The batches of several processes as those of one."""
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def broken(examples, *numbers):
    """The examples, some of which are no videos."""
    paths = list(examples.paths)
    for number in numbers:
        paths[number] = f"{paths[number]}.gone"
    return Examples(paths, examples.labels, examples.classes, examples.num_labels)


def test_what_is_in_a_batch(examples):
    (batch,) = batches(examples, 1)
    assert {name: (array.dtype, array.shape) for name, array in batch.items()} == {
        "frames": (np.uint8, (3, 4, CANVAS, CANVAS, 3)),
        "sizes": (np.int32, (3, 2)),
        "labels": (np.int32, (3,)),
        "index": (np.int32, (3,)),
    }
    for place, index in enumerate(batch["index"]):
        assert batch["labels"][place] == examples.labels[index]
        frames = read_frames(examples.paths[index], range(count_frames(examples.paths[index])))
        assert batch["sizes"][place].tolist() == list(frames.shape[1:3])
        there = [resize_pil(frame, CANVAS, CANVAS) for frame in frames]
        for frame in batch["frames"][place]:
            assert any(np.array_equal(frame, each) for each in there)


@pytest.mark.parametrize(
    ("setting", "rule"), [("kinetics_train", kinetics), ("ssv2_train", ssv2), ("ssv2", ssv2)]
)
def test_evaluation_takes_the_frames_of_the_rule_without_chance(examples, setting, rule):
    found = batches(examples, train=False, sampling=setting)
    for batch in found:
        for place, index in enumerate(batch["index"]):
            if index >= 0:
                path = examples.paths[index]
                frames = read_frames(path, rule(count_frames(path), 4, rate=4))
                there = np.stack([resize_pil(frame, CANVAS, CANVAS) for frame in frames])
                np.testing.assert_array_equal(batch["frames"][place], there)


def test_evaluation_goes_through_once_and_fills_up(examples):
    found = batches(examples, train=False)
    assert np.concatenate([batch["index"] for batch in found]).tolist() == [*range(COUNT), -1, -1]
    assert found[-1]["valid"].tolist() == [True, False, False]
    assert found[0]["valid"].dtype == bool
    assert found[0]["valid"].all()
    assert not found[-1]["frames"][1:].any()
    assert all(batch["frames"].shape == (3, 4, CANVAS, CANVAS, 3) for batch in found)


def test_each_epoch_has_each_example_once_in_an_order_of_its_own(examples):
    found = batches(examples, COUNT)
    order = np.concatenate([batch["index"] for batch in found]).reshape(3, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in order)
    assert len({tuple(epoch) for epoch in order}) == 3


def test_other_frames_of_a_video_in_another_epoch(examples):
    one = Examples(examples.paths[-1:], None, None, 0)
    for sampling in ("kinetics_train", "ssv2_train", "pretraining"):
        found = batches(one, 6, batch_size=1, sampling=sampling)
        assert len({batch["frames"].tobytes() for batch in found}) > 1
        assert "labels" not in found[0]


def test_the_seed_decides(examples):
    first = batches(examples, 3)
    same(first, batches(examples, 3))
    other = batches(examples, 3, seed=6)
    assert not np.array_equal(first[0]["index"], other[0]["index"])


def test_workers_make_the_same_batches(examples):
    same(batches(examples, 4), batches(examples, 4, workers=2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_goes_on_with_the_next_batch(examples, workers):
    whole = batches(examples, 5)
    source = make_input(examples, Input(batch_size=3), CONFIG, train=True, seed=5)
    assert source.get_state() == {"next_batch": 0}
    for _ in range(3):
        next(source)
    state = source.get_state()
    source.close()
    same(whole[3:], batches(examples, 2, state=state, workers=workers))


def test_a_state_can_be_set_while_batches_are_under_way(examples):
    whole = batches(examples, 4)
    source = make_input(examples, Input(batch_size=3), CONFIG, train=True, seed=5)
    source.start_prefetch()
    for first in (1, 0, 2):
        source.set_state({"next_batch": first})
        same(whole[first : first + 2], [next(source), next(source)])
    source.close()
    with pytest.raises(ValueError, match="closed"):
        next(source)


def test_a_state_of_an_evaluation(examples):
    whole = batches(examples, train=False)
    same(whole[2:], batches(examples, train=False, state={"next_batch": 2}))


def test_it_is_saved_as_orbax_asks_for(examples, tmp_path):
    from orbax.checkpoint.experimental.v1._src.handlers.types import StatefulCheckpointable

    whole = batches(examples, 4)
    source = make_input(examples, Input(batch_size=3), CONFIG, train=True, seed=5)
    assert isinstance(source, StatefulCheckpointable)
    next(source)

    class Folder:
        async def await_creation(self):
            return tmp_path

    async def there_and_back():
        await (await source.save(Folder()))
        next(source)
        await (await source.load(tmp_path))

    asyncio.run(there_and_back())
    same(whole[1:3], [next(source), next(source)])
    source.close()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_batch(examples, processes, train):
    count = 3 if train else None
    alone = batches(examples, count, batch_size=4, train=train)
    parts = [
        batches(
            examples,
            count,
            batch_size=4,
            train=train,
            process_index=process,
            process_count=processes,
        )
        for process in range(processes)
    ]
    assert all(len(batch["index"]) == 4 // processes for part in parts for batch in part)
    same(alone, joined(parts))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_video_is_reported_once_and_the_next_takes_its_place(examples, workers):
    lines = []
    whole = np.concatenate([batch["index"] for batch in batches(examples, COUNT)])
    found = batches(broken(examples, 2), COUNT, workers=workers, report=lines.append)
    order = np.concatenate([batch["index"] for batch in found])
    for start in range(0, 3 * COUNT, COUNT):
        epoch = whole[start : start + COUNT].tolist()
        place = epoch.index(2)
        epoch[place] = epoch[(place + 1) % COUNT]
        assert order[start : start + COUNT].tolist() == epoch
    assert lines == [f"{examples.paths[2]}.gone: doesn't exist; check the path"]


def test_a_bad_video_of_an_evaluation_is_not_valid(examples):
    lines = []
    found = batches(broken(examples, 1, 4), train=False, report=lines.append)
    index = np.concatenate([batch["index"] for batch in found])
    valid = np.concatenate([batch["valid"] for batch in found])
    assert index[valid].tolist() == [0, 2, 3, 5, 6]
    assert index[~valid].tolist() == [1, 4, -1, -1]
    assert len(lines) == 2


@pytest.mark.parametrize(("train", "workers"), [(True, 0), (False, 0), (True, 1)])
def test_a_bad_video_stops_where_that_is_asked_for(examples, train, workers):
    bad = broken(examples, 2)
    with pytest.raises(VideoError, match=r"2.mp4.gone|4.mp4.gone") as caught:
        batches(bad, COUNT, train=train, workers=workers, on_bad_video="stop")
    assert str(caught.value) == f"{bad.paths[2]}: doesn't exist; check the path"


def test_nothing_but_bad_videos(examples):
    lines = []
    with pytest.raises(
        VideoError, match=r"^7 videos after each other can't be used, the last .*ex"
    ):
        batches(broken(examples, *range(COUNT)), 1, report=lines.append)
    assert len(lines) == COUNT


def test_a_video_too_short_for_the_rule_is_bad(tmp_path):
    short = Examples([str(write_clip(tmp_path / "x.mp4", 3))], None, None, 0)
    lines = []
    (batch,) = batches(short, batch_size=1, train=False, sampling="uniform", report=lines.append)
    assert not batch["valid"].any()
    assert "has 3 frames, fewer than the 4" in lines[0]


KILLED = """
import multiprocessing, os, signal, sys
from videomae_jax.config import VideoMAEConfig
from videomae_jax.training.examples import read_examples
from videomae_jax.training.input import make_input
from videomae_jax.training.settings import Input

if __name__ == "__main__":
    settings = Input(batch_size=2, canvas=32, workers=2)
    examples = read_examples(sys.argv[1])
    batches = make_input(examples, settings, VideoMAEConfig(), train=True, seed=1)
    next(batches)
    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_process_that_is_killed(folder, tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    # A file: a pipe would be open as long as the workers are.
    with (tmp_path / "out").open("w+") as out:
        command = [sys.executable, str(tmp_path / "killed.py"), str(folder)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        code = subprocess.run(command, stdout=out, stderr=out, env=environment, check=False)
        out.seek(0)
        text = out.read()
    assert code.returncode == -signal.SIGKILL, text
    workers = [int(number) for number in text.split()]
    assert len(workers) == 2
    deadline = time.monotonic() + 30
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "workers are there without their parent"
        time.sleep(0.05)


def is_running(process):
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_labels_of_several_classes(examples):
    labels = np.eye(COUNT, dtype=np.float32)
    several = Examples(examples.paths, labels, None, COUNT)
    (batch,) = batches(several, 1)
    assert batch["labels"].dtype == np.float32
    np.testing.assert_array_equal(batch["labels"], labels[batch["index"]])


def test_no_more_is_decoded_ahead_than_is_bounded(examples, monkeypatch):
    made = []
    one = Clips.__getitem__

    def counted(self, index):
        made.append(index)
        return one(self, index)

    monkeypatch.setattr(Clips, "__getitem__", counted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    source = make_input(examples, Input(batch_size=2), CONFIG, train=True, seed=5)
    next(source)
    while len(made) < 6:
        time.sleep(0.01)
    # It would go on if nothing held it.
    time.sleep(0.3)
    source.close()
    # That batch, one that is whole, one that waits for its place, and what threads are at.
    assert len(made) <= 4 * 2


def test_the_canvas(examples):
    assert canvas_of(examples, Input(batch_size=1), CONFIG) == (32, 32)
    assert canvas_of(examples, Input(batch_size=1), VideoMAEConfig()) == (256, 256)
    assert canvas_of(examples, Input(batch_size=1, canvas=40), CONFIG) == (40, 40)
    source = make_input(examples, Input(batch_size=1, canvas=40), CONFIG, train=True, seed=5)
    assert next(source)["frames"].shape == (1, 4, 40, 40, 3)
    source.close()


def test_steps_of_an_epoch(examples):
    assert [steps_per_epoch(examples, Input(batch_size=size)) for size in (1, 3, 9)] == [7, 2, 1]


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"batch_size": 3}, {"process_count": 2}, "a multiple of the 2 processes, got 3"),
        ({"batch_size": 0}, {}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2}, {"process_index": 1}, "process_index must be 0 to 0, got 1"),
        ({"batch_size": 2, "workers": -1}, {}, "workers must be at least 0, got -1"),
        ({"batch_size": 2, "sampling": "x"}, {}, "no sampling rule 'x'; one of: kinetics_train"),
        ({"batch_size": 2, "sampling": "x"}, {}, "pretraining, uniform, linspace, kinetics, ssv2"),
        ({"batch_size": 2, "rate": 0}, {}, "rate must be at least 1, got 0"),
        ({"batch_size": 2}, {"on_bad_video": "hide"}, "must be skip or stop, got 'hide'"),
    ],
)
def test_settings_that_can_not_be(examples, settings, options, message):
    with pytest.raises(ValueError, match=message):
        make_input(examples, Input(**settings), CONFIG, train=True, seed=0, **options)
