"""The latency harness: what it calls, in which order, and what it makes of the samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fake_clock import FakeClock
from hat_export.base.progress import SILENT
from hat_export.benchmark.latency.cases import COMPONENTS, Case, Sizes, cases_of, write_pictures
from hat_export.benchmark.latency.measure import WINDOW_TURNS, measure_pass
from hat_export.benchmark.latency.merge import merged_report
from hat_export.benchmark.latency.record import SCHEMA_VERSION, read_run, run_of
from hat_export.benchmark.latency.report import latency_report
from hat_export.errors import InputError
from hat_export.report.reader import read_report
from hat_export.report.report import write_report
from latency_samples import made_up_case, made_up_run


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def case(target: str, run, component: str = "images") -> Case:
    return Case(target, component, "1", 2, 1, run)


def test_targets_are_called_in_turn(clock: FakeClock) -> None:
    order: list[str] = []

    def run(name: str) -> None:
        order.append(name)
        clock.now += 0.5

    group = [case(name, lambda name=name: run(name)) for name in "ab"]
    found = measure_pass([group], seconds=0, rounds=4, progress=SILENT, timer=clock.timer())
    assert "".join(order) == "ab" + "ab" * (2 * WINDOW_TURNS) + "ab" * 4
    assert [part.medians for part in found] == [[0.5] * 4] * 2
    assert [part.anchor for part in found] == [pytest.approx((0.002,) * 4)] * 2
    assert all(part.stable and part.warm_up_turns == 2 * WINDOW_TURNS for part in found)


def test_short_calls_are_repeated_within_a_turn(clock: FakeClock) -> None:
    def run() -> None:
        clock.now += 0.0039

    (found,) = measure_pass(
        [[case("a", run)]], seconds=0, rounds=2, progress=SILENT, timer=clock.timer()
    )
    assert [len(calls) for calls in found.rounds] == [5, 5]


def test_warm_up_goes_on_until_stable(clock: FakeClock) -> None:
    durations = iter([9, 9, 8, 7, 6, 5, 4, 3, 2, 1])

    def run() -> None:
        clock.now += next(durations, 1)

    (found,) = measure_pass(
        [[case("a", run)]], seconds=1000, rounds=1, progress=SILENT, timer=clock.timer()
    )
    assert found.stable
    assert found.warm_up_turns > 10
    assert found.medians == pytest.approx([1] * len(found.medians))


def test_what_never_becomes_stable_is_said_so(clock: FakeClock) -> None:
    calls = iter(range(1, 10_000))

    def run() -> None:
        clock.now += 1.2 ** next(calls)

    (found,) = measure_pass(
        [[case("a", run)]], seconds=0, rounds=1, progress=SILENT, timer=clock.timer()
    )
    assert not found.stable
    assert found.warm_up_turns == 2 * WINDOW_TURNS
    report = latency_report(made_up_run(made_up_case(1, stable=False)))
    assert "1 of 1 cases never became stable" in " ".join(report.summary)
    assert report.tables[0].rows[0][-1] == "NO"


def test_every_component_of_a_session_is_timed(tiny_bundle: Path, tmp_path: Path) -> None:
    import hat_export

    sizes = Sizes((1, 3), (2,), 8, ((2, 3),), (5,))
    pictures = write_pictures(tmp_path, 3)
    with hat_export.open_bundle(tiny_bundle, threads=1, verify=False) as session:
        cases = cases_of("x", session, sizes, pictures)
        results = {f"{c.component} {c.size}": c.run() for c in cases}
    assert {c.component for c in cases} == set(COMPONENTS)
    assert results["preprocessing 3"].shape == (3, 3, 64, 64)
    assert len(results["images 3"]) == 3
    assert results["texts 2 x 8"].lengths.tolist() == [8, 8]
    assert results["scores 2 x 3"].shape == (2, 3)
    assert sorted(results["end to end 1 caption, 5 images"].tolist()) == [0, 1, 2, 3, 4]


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    run = made_up_run(made_up_case(10), made_up_case(5, "b", seed=1))
    path = tmp_path / "run.json"
    write_report(latency_report(run), path)
    again = read_run(path)
    assert again.environment == run.environment
    assert [t.key for t in again.timings] == [t.key for t in run.timings]
    for before, after in zip(run.timings, again.timings, strict=True):
        assert after.calls == pytest.approx(before.calls, abs=1e-8)
        assert after.logs.target == pytest.approx(before.logs.target, abs=1e-5)
        assert after.logs.anchor == pytest.approx(before.logs.anchor, abs=1e-4)
    row = read_report(path)["data"]["timings"][0]
    assert row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
    interval = row["p50_interval_ms"]
    assert interval["low"] <= row["p50_ms"] <= interval["high"]
    assert row["calls"] == 3 * 12 * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema_version=1), f"version 1; this version reads {SCHEMA_VERSION}"),
        (lambda d: d.update(timings=[]), "damaged"),
        (lambda d: d["timings"][0].pop("passes"), "damaged"),
        (lambda d: d["timings"][0]["passes"][0].update(anchor_seconds=[1.0]), "damaged"),
        (
            lambda d: d["timings"][0]["passes"][0]["round_seconds"][0].append(-1),
            "number -1 out of range",
        ),
        (lambda d: d["timings"][0].update(component="<b>"), "component <b>"),
        (lambda d: d["timings"][0]["passes"][0]["wait_seconds"][0].append(0), "damaged"),
        (lambda d: d["timings"][0]["passes"][0].update(wait_seconds=[[1] * 3] * 12), "damaged"),
        (lambda d: d["timings"][0]["passes"][0].update(part_seconds={"copy": [[0.1]]}), "damaged"),
        (lambda d: d["timings"][0]["passes"][0].update(part_seconds=[]), "damaged"),
        (
            lambda d: d["timings"][0]["passes"][0].update(part_seconds={"x": [[0.1] * 3] * 12}),
            "passes with different parts",
        ),
        (lambda d: d.update(targets=[{}]), "damaged"),
        (lambda d: d["targets"][0].update(starts=[{"python": 1}]), "damaged"),
        (lambda d: d.update(bounds={"cases": [{"seconds": 0}]}), "number 0 out of range"),
        (lambda d: d.update(bounds={"machines": [{"threads": 2}]}), "damaged"),
        (lambda d: d.update(environment=None), "damaged"),
    ],
)
def test_a_damaged_report_is_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "run.json"
    write_report(latency_report(made_up_run(made_up_case(10))), path)
    content = json.loads(path.read_text())
    change(content["data"])
    with pytest.raises(InputError, match=message):
        run_of(content, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "not a report"),
        ('{"kind": "parity", "version": 1, "data": {}}', "a parity report; expected latency"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_run(path)
    with pytest.raises(InputError, match="can't be read"):
        read_run(tmp_path / "missing.json")


def test_the_report_compares_with_the_first_target() -> None:
    run = made_up_run(made_up_case(20, "slow"), made_up_case(10, "fast", seed=1))
    report = latency_report(run)
    rows = report.tables[0].rows
    assert [row[6] for row in rows] == ["", "2.00x"] or rows[1][6] in ("1.99x", "2.01x")
    low, high = map(float, rows[1][7].split(" to "))
    assert 1.9 < low < 2 < high < 2.1
    assert report.summary[0].startswith("Speed of fast against slow: images ")
    assert ("cpu", "x") in report.tables[-1].rows


def test_recalls_of_other_targets_are_told() -> None:
    run = made_up_run(made_up_case(10))
    shown = latency_report(run, {"another": 300.0})
    assert "parity reports are of another" in shown.summary[-1]
    assert [f.title for f in latency_report(run, {"a": 300.0}).figures][-1].startswith("Recall")


def test_reports_are_merged(tmp_path: Path) -> None:
    for seed, (name, machine) in enumerate((("old", 1.0), ("new", 2.0))):
        run = made_up_run(made_up_case(10, machine=machine, noise=0.01, seed=seed))
        write_report(latency_report(run), tmp_path / f"{name}.json")
    sides = {"reference": {"name": "a", "rsum": 300.0}, "candidate": {"name": "b", "rsum": 299.0}}
    parity = {"kind": "parity", "version": 1, "passed": True, "summary": ["fine"], "data": sides}
    (tmp_path / "parity.json").write_text(json.dumps(parity))
    paths = [tmp_path / f"{name}.json" for name in ("old", "new", "parity")]
    report = merged_report(paths)
    assert [row[:3] for row in report.tables[0].rows][2] == ("parity.json", "parity", "yes")
    rows = report.tables[1].rows
    assert [row[1] for row in rows] == ["a [old]", "a [new]"]
    # The machine of the second run is half as fast, the target is the same.
    low, high = map(float, rows[1][7].split(" to "))
    assert low <= 1 <= high
    assert high / low < 2
    assert "Recall over latency: images" in [figure.title for figure in report.figures]
    with pytest.raises(InputError, match="none of the files is a latency report"):
        merged_report(paths[2:])
