"""What the benchmarks share, without torch."""

from benchmarks import machine, turns


def test_ticks_of_work_leave_out_waiting():
    stat = "cpu  1000 200 30 99999 77777 4 5 6 100 200\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert machine.busy_ticks(stat) == 1245


def test_own_work_is_no_neighbour(monkeypatch):
    readings = iter([100.0, 103.0])
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(readings))
    times = iter([10.0, 12.0])
    monkeypatch.setattr(machine.time, "process_time", lambda: next(times))
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 2)
    with machine.Neighbours() as neighbours:
        pass
    assert neighbours.share == 0.25


def test_a_description_names_what_is_installed_alone():
    found = machine.describe(["jax", "no-such-package"], accelerators=["NVIDIA H200"])
    assert set(found) == {"machine", "versions", "command"}
    assert set(found["versions"]) == {"python", "jax"}
    assert found["machine"]["cores"] >= 1
    text = machine.in_words(found)
    assert "NVIDIA H200" in text
    assert f"jax {found['versions']['jax']}" in text


def test_sides_take_turns_and_the_order_is_reversed(monkeypatch):
    monkeypatch.setattr(turns, "PAUSE", 0.0)
    monkeypatch.setattr(turns, "SECONDS_A_SAMPLE", 1e-9)
    called, rounds = [], []
    sides = {
        name: turns.Side(lambda name=name: called.append(name), lambda result: None)
        for name in "abc"
    }
    samples = turns.in_turns(sides, 3, after_round=lambda: rounds.append(len(called)))
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}
    assert "".join(called[-9:]) == "abccbaabc"
    assert len(rounds) == 3


def test_a_sample_is_of_calls_started_one_after_the_other():
    events = []
    side = turns.Side(lambda: events.append("call"), lambda result: events.append("wait"))
    assert side.seconds(3) >= 0
    assert events == ["call", "call", "call", "wait"]


def test_the_ratio_is_of_medians():
    assert turns.ratio([1.0, 2.0, 90.0], [4.0, 0.1, 50.0]) == 0.5
