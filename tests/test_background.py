import threading
import time

import pytest

from videomae_jax.background import in_background, one_ahead, several_ahead


def test_a_call_goes_on_meanwhile_and_raises_when_asked():
    start, end = threading.Event(), threading.Event()

    def call(first, *, second):
        start.set()
        assert end.wait(30)
        return first + second

    future = in_background(call, 1, second=2)
    assert start.wait(30)
    assert not future.done()
    end.set()
    assert future.result() == 3
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 / 0).result()


def test_one_call_is_ahead_and_no_more():
    began = []
    calls = one_ahead(lambda item: began.append(item) or item * 10, [1, 2, 3])
    # Nothing was asked for yet.
    while began != [1]:
        time.sleep(0.001)
    found = []
    for number, (item, future) in enumerate(calls, start=1):
        found.append((item, future.result()))
        while len(began) < min(number + 1, 3):
            time.sleep(0.001)
        assert began == [1, 2, 3][: number + 1]
    assert found == [(1, 10), (2, 20), (3, 30)]


def test_what_fails_does_not_stop_the_others():
    def call(item):
        if item == "b":
            raise ValueError(item)
        return item

    failed = [item for item, future in one_ahead(call, ["a", "b", "c"]) if future.exception()]
    assert failed == ["b"]


def test_no_items_are_no_calls():
    assert list(one_ahead(lambda item: 1 / 0, [])) == []


def test_several_calls_are_ahead_and_no_more():
    began, go_on = [], threading.Event()

    def call(item):
        began.append(item)
        if item == 1:
            assert go_on.wait(30)
        return item * 10

    calls = several_ahead(call, [1, 2, 3, 4, 5], count=3)
    # Nothing was asked for yet; and the first one keeps the fourth from being begun.
    while len(began) < 3:
        time.sleep(0.001)
    time.sleep(0.01)
    assert sorted(began) == [1, 2, 3]
    go_on.set()
    assert [(item, future.result()) for item, future in calls] == [
        (item, item * 10) for item in (1, 2, 3, 4, 5)
    ]
    assert sorted(began) == [1, 2, 3, 4, 5]
    assert list(several_ahead(call, [], count=3)) == []
