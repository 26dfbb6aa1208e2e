"""The timer: whom it calls, when it pauses, and what it takes out."""

from __future__ import annotations

import threading

import pytest

from fake_clock import REFERENCE_SECONDS, FakeClock
from hat_export.base.timer import Call, RunQueueWait, Timer, own_median


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_things_are_called_in_turn_after_a_pause_each(clock: FakeClock) -> None:
    order: list[str] = []

    def run(name: str, seconds: float) -> None:
        order.append(name)
        clock.work(seconds)

    runs = {"a": lambda: run("a", 0.5), "b": lambda: run("b", 0.25)}
    found = clock.timer(settle_seconds=0.02).in_turn(runs, rounds=3)
    assert "".join(order) == "ab" + "ab" * 3
    assert found == {"a": [Call(0.5, 0.0)] * 3, "b": [Call(0.25, 0.0)] * 3}
    assert clock.pauses == [0.02] * 6


@pytest.mark.parametrize(
    ("options", "expected", "counted"),
    [
        ({"calls": 2}, "ab" + "aaabbb" * 2, 4),  # of several calls the first only wakes
        ({"wake": True}, "ab" + "aabb" * 2, 2),
        ({"calls": 2, "wake": False}, "ab" + "aabb" * 2, 4),
        ({"warm_up": 0}, "ab" * 2, 2),
        ({"seconds": 0.05}, "ab" + "ab" * 3, 3),  # the pauses of a round take 0.02
    ],
)
def test_turns(clock: FakeClock, options: dict[str, int], expected: str, counted: int) -> None:
    order: list[str] = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    found = clock.timer().in_turn(runs, rounds=2, **options)
    assert "".join(order) == expected
    assert {name: len(calls) for name, calls in found.items()} == {"a": counted, "b": counted}


def test_the_first_calls_are_not_counted(clock: FakeClock) -> None:
    durations = iter([9.0, 8.0, 1.0, 1.5, 2.0])
    found = clock.timer().repeat(lambda: clock.work(next(durations)), calls=3, warm_up=2)
    assert [call.seconds for call in found] == pytest.approx([1.0, 1.5, 2.0])
    assert own_median(found) == pytest.approx(1.5)
    assert len(clock.pauses) == 1


def test_short_calls_go_on_for_a_time(clock: FakeClock) -> None:
    found = clock.timer().repeat(lambda: clock.work(0.01), calls=3, seconds=0.095)
    assert len(found) == 10
    assert len(clock.timer().repeat(lambda: clock.work(1.0), calls=3, seconds=0.1)) == 3


def test_time_without_a_core_is_taken_out(clock: FakeClock) -> None:
    waits = iter([0.0, 0.5, 0.1, 2.0])
    found = clock.timer().repeat(lambda: clock.work(1.0, next(waits)), calls=3)
    # More than the call itself can't be waited: other threads' clocks are read at another moment.
    assert [call.waited for call in found] == pytest.approx([0.5, 0.1, 0.99])
    assert [call.own for call in found] == pytest.approx([0.5, 0.9, 0.01])


def test_the_reference_workload_is_timed_alone(clock: FakeClock) -> None:
    timer = clock.timer()
    before = clock.now
    assert timer.reference() == pytest.approx(REFERENCE_SECONDS)
    # A pause, a run that wakes, and the one that counts.
    assert clock.now - before == pytest.approx(0.01 + 2 * REFERENCE_SECONDS)


def test_the_default_reference_is_the_workload() -> None:
    assert Timer(sleep=lambda seconds: None).reference() > 0


def test_waits_are_those_of_the_threads_that_there_are() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    with RunQueueWait() as waits:
        before = waits.read()
        stop.set()
        thread.join()
        assert len(before) != 1  # none where Linux's counters aren't there
        assert waits.since(before) >= 0.0  # of a thread that ended, too
    assert waits.read() == []
