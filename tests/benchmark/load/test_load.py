"""Load: dynamic batching, LoadGen's summary, and LoadGen itself on work that takes no time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

import hat_export
from hat_export.base.progress import SILENT
from hat_export.benchmark.load import scenarios
from hat_export.benchmark.load.batching import Batcher, Request
from hat_export.benchmark.load.report import load_report
from hat_export.benchmark.load.scenarios import SCENARIOS, Load, run_scenarios
from hat_export.benchmark.load.summary import SUMMARY, Summary, read_summary
from hat_export.benchmark.load.work import SAMPLES, WORKS, Work
from hat_export.errors import InputError

SUMMARIES = {
    "SingleStream": ("90.0th percentile latency (ns) : 1500000", 1.5),
    "MultiStream": ("99.0th percentile latency (ns) : 36558405", 36.558405),
    "Server": ("Completed samples per second    : 429.15", 429.15),
    "Offline": ("Samples per second: 923.301", 923.301),
}


class Busy:
    """A model that answers when it is told to, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, batch) -> None:
        self.batches.append(list(batch))
        self.started.release()
        assert self.go_on.acquire(timeout=10)


def requests(*samples: int) -> list[Request]:
    return [Request(100 + sample, sample) for sample in samples]


def test_what_waits_while_the_model_is_busy_is_answered_together() -> None:
    model, done = Busy(), []
    with Batcher(model, lambda batch: done.extend(r.identity for r in batch), 3) as batcher:
        batcher.put(requests(0))
        assert model.started.acquire(timeout=10)
        batcher.put(requests(1))
        batcher.put(requests(2, 3, 4))
        for _ in range(3):
            model.go_on.release()
    assert model.batches == [[0], [1, 2, 3], [4]]
    assert done == [100, 101, 102, 103, 104]
    assert batcher.sizes == {1: 2, 3: 1}


def test_a_batch_that_is_full_waits_for_nobody_and_an_incomplete_one_waits() -> None:
    batches: list[int] = []
    answered = threading.Event()

    def answer(batch) -> None:
        batches.append(len(batch))
        answered.set()

    with Batcher(answer, lambda _: None, 2, delay=60) as batcher:
        batcher.put(requests(1, 2))
        assert answered.wait(10)
        answered.clear()
        batcher.put(requests(3))
        assert not answered.wait(0.05)
        batcher.put(requests(4))
        assert answered.wait(10)
        batcher.put(requests(5))
    assert batches == [2, 2, 1]  # closing answers what is left


def test_a_failure_ends_nothing_and_is_kept() -> None:
    done = []

    def answer(batch) -> None:
        raise InputError("broken")

    with Batcher(answer, done.extend, 1) as batcher:
        batcher.put(requests(1, 2))
    assert len(done) == 2
    assert str(batcher.error) == "broken"


@pytest.mark.parametrize("scenario", SUMMARIES)
def test_a_scenarios_own_statistic_is_its_result(tmp_path: Path, scenario: str) -> None:
    line, expected = SUMMARIES[scenario]
    text = f"""================================================
MLPerf Results Summary
================================================
SUT name : PySUT
Scenario : {scenario}
Mode     : PerformanceOnly
{line}
Result is : INVALID
  Min duration satisfied : Yes
  Early stopping satisfied: NO

Additional Stats
90.00 percentile latency (ns)   : 1
"""
    (tmp_path / SUMMARY).write_text(text)
    summary = read_summary(tmp_path)
    assert summary.result == pytest.approx(expected)
    assert not summary.valid
    assert summary.reasons == ("Early stopping",)


def test_a_summary_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wrote no summary"):
        read_summary(tmp_path)
    (tmp_path / SUMMARY).write_text("Scenario : Offline\n")
    with pytest.raises(InputError, match="statistic is missing"):
        read_summary(tmp_path)
    (tmp_path / SUMMARY).write_text("Scenario : Another\n")
    with pytest.raises(InputError, match="'Another', which is not known"):
        read_summary(tmp_path)


LOAD = Load(0.1, 20.0, 4, 0.0, 2000.0, 1.0)


def test_loadgen_runs_the_four_scenarios(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen isn't installed")
    work = Work("nothing", "nothing at all", 8, lambda batch: sum(range(1000)))
    outcomes = run_scenarios(work, SCENARIOS, LOAD, tmp_path, SILENT)
    assert [outcome.summary.scenario for outcome in outcomes] == list(SCENARIOS)
    for outcome in outcomes:
        assert (outcome.folder / SUMMARY).is_file()
        assert outcome.summary.result > 0
        assert max(outcome.batches) <= 4
    multi = outcomes[1]
    answered = sum(size * count for size, count in multi.batches.items())
    assert answered == 8 * int(answered / 8) >= 662 * 8
    report = load_report("x", outcomes, [work], LOAD, {})
    assert [row[1] for row in report.tables[0].rows] == list(SCENARIOS)
    assert report.passed == all(outcome.summary.valid for outcome in outcomes)


def test_the_rate_of_server_is_lowered_until_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []

    def fake(work: Work, settings, load: Load, folder: Path):
        rates.append(settings["server_target_qps"])
        (folder / SUMMARY).write_text(str(len(rates)))
        return Summary("Server", len(rates) > holds, rates[-1], (), {}), {}

    monkeypatch.setattr(scenarios, "_run", fake)
    work = Work("nothing", "", 8, lambda batch: None)
    free = replace(LOAD, server_qps=None)
    stale = tmp_path / "nothing-Server-not-held-9"
    stale.mkdir()
    holds = 2  # the third does
    (outcome,) = run_scenarios(work, ("Server",), free, tmp_path, SILENT)
    assert outcome.summary.valid
    assert len(rates) == 3
    assert rates[2] == outcome.settings["server_target_qps"] == pytest.approx(0.49 * rates[0])
    assert {path.parent.name: path.read_text() for path in tmp_path.rglob(SUMMARY)} == {
        "nothing-Server-not-held-1": "1",
        "nothing-Server-not-held-2": "2",
        "nothing-Server": "3",
    }
    assert not stale.exists()
    rates.clear()
    holds = 99  # no rate does: said, after some tries
    (outcome,) = run_scenarios(work, ("Server",), free, tmp_path, SILENT)
    assert not outcome.summary.valid
    assert len(rates) == scenarios.SERVER_TRIES
    rates.clear()
    run_scenarios(work, ("Server",), LOAD, tmp_path, SILENT)
    assert rates == [LOAD.server_qps]  # a wish is a wish


def test_a_failing_model_ends_the_test_with_its_error(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen", reason="LoadGen isn't installed")
    calls = iter(range(10_000))

    def answer(batch) -> None:
        if next(calls) > 20:
            raise InputError("broken")

    work = Work("failing", "", 8, answer)
    with pytest.raises(InputError, match="broken"):
        run_scenarios(work, ("SingleStream",), LOAD, tmp_path, SILENT)


def test_works_answer_batches(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=1, verify=False) as session:
        made = {name: make(session, 5) for name, make in WORKS.items()}
        assert len(made["images"].answer([0, SAMPLES - 1])) == 2
        assert len(made["texts"].answer([1, 2, 3])) == 3
        ranking = made["search"].answer([4, 5])
        assert ranking.shape == (5, 2)
        assert sorted(ranking[:, 0].tolist()) == [0, 1, 2, 3, 4]
