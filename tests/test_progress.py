import io
import json

import pytest

from tpu import progress
from tpu.progress import Busy, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("batches", "waited"),
    [
        ([], None),
        ([(1.0, 2.0)], 0.0),
        # The second was begun while the first was computed: the device had no pause.
        ([(1.0, 2.0), (1.5, 3.0)], 0.0),
        # From 2 to 4 it had nothing to do, of 1 to 5.
        ([(1.0, 2.0), (4.0, 5.0)], 0.5),
        # Two ahead, then a pause from 3 to 6, of 0 to 10.
        ([(0.0, 1.0), (0.0, 2.0), (0.5, 3.0), (6.0, 10.0)], 0.3),
    ],
)
def test_the_share_of_time_that_the_device_waited(batches, waited):
    busy = Busy()
    for begun, done in batches:
        busy.add(begun, done)
    assert busy.waited == (None if waited is None else pytest.approx(waited))


def test_a_line_of_json_every_30_seconds(monkeypatch):
    clock = iter([0.0, 10.0, 29.0, 31.0, 31.0, 40.0, 62.0, 62.0, 80.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    telling = Progress(20, 5, stream=stream)
    for failed in (False, True, False, False, False):
        telling.add(failed=failed)
        telling.tell()
    telling.end("done")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["progress", "progress", "done"]
    assert lines[0] == {
        "event": "progress",
        "done": 8,
        "of": 25,
        "failed": 1,
        "seconds": 31.0,
        "videos_per_s": round(3 / 31, 3),
        "left_s": round(17 / (3 / 31), 1),
        "device_waited": None,
    }
    assert lines[2]["done"] == 10


def test_a_bar_on_a_terminal():
    terminal = Terminal()
    telling = Progress(4, 6, stream=terminal)
    telling.busy.add(0.0, 3.0)
    telling.busy.add(4.0, 5.0)
    for failed in (False, True, False, False):
        telling.add(failed=failed)
        telling.tell()
    telling.end("done")
    shown = terminal.getvalue()
    assert "10/10" in shown
    assert "video/s" in shown
    assert "failed=1" in shown
    assert "device waited=20%" in shown
    assert "{" not in shown
