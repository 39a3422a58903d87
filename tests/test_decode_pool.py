import json
import mmap
import os
import threading
import time

import numpy as np
import pytest

from tests.clips import write_clip
from tests.configs import TINY
from tpu.decode_pool import DecodePool
from tpu.decode_worker import answer
from tpu.decoder import Decoder, DecoderError, Slots
from tpu.reading import Reading
from videomae_jax.processing import Preprocess
from videomae_jax.views import Views

READING = Reading.of(TINY, Preprocess.default(TINY.image_size), Views())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    paths = [write_clip(folder / f"{count}.mp4", count) for count in (6, 7, 20)]
    paths.append(folder / "empty.mp4")
    paths[-1].write_bytes(b"")
    return [str(path) for path in paths]


def expected(path):
    clips = np.empty(READING.shape, np.uint8)
    READING.read(path, clips)
    return clips


def all_answers(pool):
    while True:
        try:
            found = pool.take(1.0)
        except StopIteration:
            return
        if found is not None:
            yield found
            pool.release(found)


def test_a_reading_travels_as_json():
    assert Reading.from_dict(json.loads(json.dumps(READING.to_dict()))) == READING
    assert READING.shape == (1, 6, 12, 20, 3)
    assert READING.nbytes == 6 * 12 * 20 * 3


@pytest.mark.parametrize("workers", [1, 3])
def test_all_videos_are_answered_once(clips, workers):
    videos = [(row, clips[row % 4]) for row in range(30)]
    found = {}
    with DecodePool(READING, iter(videos), workers=workers, timeout_s=60) as pool:
        for each in all_answers(pool):
            assert each.row not in found
            assert (each.clips is None) == (each.row % 4 == 3)
            if each.clips is not None:
                assert np.array_equal(each.clips, expected(clips[each.row % 4]))
                assert each.decoded.frames == (6, 7, 20)[each.row % 4]
            found[each.row] = each.decoded.error
    assert sorted(found) == list(range(30))
    assert {found[row] for row in range(3, 30, 4)} == {"is empty; copy or download it again"}


def test_no_more_is_decoded_than_there_is_room_for(clips):
    asked = []

    def videos():
        for row in range(100):
            asked.append(row)
            yield row, clips[0]

    with DecodePool(READING, videos(), workers=2, timeout_s=60) as pool:
        taken = []
        while len(taken) < 4:
            taken.append(pool.take(1.0))
        time.sleep(0.5)
        # Four slots, all taken; each of two threads has asked for one more.
        assert len(asked) == 6
        before = taken[0].clips.copy()
        assert np.array_equal(before, expected(clips[0]))
        for each in taken:
            pool.release(each)
        assert pool.take(60.0) is not None


def test_leaving_early_ends_threads_and_processes(clips):
    before = threading.active_count()
    with DecodePool(READING, iter([(0, clips[2])] * 1000), workers=2, timeout_s=60) as pool:
        assert pool.take(60.0) is not None
        processes = [decoder._process for decoder in pool._all]
    assert threading.active_count() == before
    assert all(process is None or process.poll() is not None for process in processes)


def test_what_the_threads_meet_is_raised(clips):
    def videos():
        yield 0, clips[0]
        raise ZeroDivisionError

    with (
        pytest.raises(ZeroDivisionError),
        DecodePool(READING, videos(), workers=1, timeout_s=60) as pool,
    ):
        list(all_answers(pool))


def test_a_decoder_whose_job_is_gone_ends(clips):
    slots = Slots(READING, 1)
    decoder = Decoder(READING, slots, timeout_s=60)
    assert decoder.decode(clips[0], 0).frames == 6
    process = decoder._process
    # As when the job is killed: nothing is said, the connection is gone.
    decoder._connection.close()
    assert process.wait(timeout=30) == 0
    slots.close()


def test_slots_lie_in_memory_one_after_the_other():
    slots = Slots(READING, 3)
    shared = np.frombuffer(mmap.mmap(slots.descriptor, 0), np.uint8)
    assert shared.size == 3 * READING.nbytes
    slots.clips(2)[:] = 7
    assert (shared[slots.offset(2) :] == 7).all()
    assert not shared[: slots.offset(2)].any()
    slots.close()


def test_whatever_a_decoder_raises_is_an_answer(monkeypatch):
    def fail(error):
        def read(*arguments, **options):
            raise error

        monkeypatch.setattr("tpu.reading.read_views", read)
        return answer(READING, "x.mp4", np.empty(READING.shape, np.uint8))

    assert fail(ValueError("x.mp4: is odd")) == {"error": "x.mp4: is odd", "transient": False}
    assert fail(MemoryError())["error"] == "x.mp4: its frames don't fit into memory"
    assert fail(TypeError("no\nway"))["error"] == "x.mp4: TypeError: no way"
    assert fail(OSError(5, "failed"))["transient"]


@pytest.mark.parametrize("program", [os.devnull, "/bin/false"])
def test_a_decoder_that_can_not_start_is_no_bad_video(monkeypatch, clips, program):
    monkeypatch.setattr("tpu.decoder.sys.executable", program)
    slots = Slots(READING, 1)
    with pytest.raises(DecoderError):
        Decoder(READING, slots, timeout_s=5).decode(clips[0], 0)
    slots.close()
