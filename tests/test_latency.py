"""The latency harness: what it calls, in which order, and what it makes of the samples."""

from __future__ import annotations

from hat_export.latency import Case, Timing, latency_report, measure


def case(target: str, component: str = "images", run=lambda: None, items: int = 1) -> Case:
    return Case(target, component, "1", 2, items, run)


def test_targets_are_called_in_turn() -> None:
    calls: list[str] = []
    group = [case(name, run=lambda name=name: calls.append(name)) for name in "ab"]
    timings = measure([group], seconds=0, calls=4, progress=lambda *_: None)
    assert "".join(calls) == "aaabbb" + "ab" * 4
    assert [len(timing.seconds) for timing in timings] == [4, 4]


def test_statistics() -> None:
    timing = Timing(case("a", items=8), tuple(index / 1000 for index in range(1, 102)))
    found = timing.to_json()
    assert round(found["p50_ms"], 6) == 51
    assert round(found["p90_ms"], 6) == 91
    assert round(found["p99_ms"], 6) == 100
    assert (round(found["min_ms"], 6), round(found["max_ms"], 6)) == (1, 101)
    assert round(found["items_per_second"], 3) == round(8 / 0.051, 3)
    assert found["calls"] == 101


def test_the_report_compares_with_the_first_target() -> None:
    slow = Timing(case("slow"), (0.2,) * 3)
    fast = Timing(case("fast"), (0.1,) * 3)
    report = latency_report([slow, fast], 16, {"machine": {"cpu": "x"}})
    assert [row[7] for row in report.tables[0].rows] == ["1.00x", "2.00x"]
    assert report.summary == ("Speed of fast against slow: images 2.00 to 2.00 times.",)
    assert ("cpu", "x") in report.tables[1].rows
