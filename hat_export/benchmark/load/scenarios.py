"""LoadGen's scenarios on our session: it sends the queries, times them and writes the result."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hat_export.base.progress import Progress
from hat_export.base.timer import Timer
from hat_export.benchmark.load.batching import Batcher, Request
from hat_export.benchmark.load.summary import Summary, read_summary
from hat_export.benchmark.load.work import Work
from hat_export.errors import BackendUnavailableError

#: In the order in which they run: Server takes its rate and its bound from those before it.
SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
#: Samples of a MultiStream query, as MLPerf has it.
STREAMS = 8
#: LoadGen prepares the queries of a stream by the latency expected and ends too early if
#: they run out; so many times more last even if calls get faster than in the trial.
PREPARED = 4
#: Fewest queries that LoadGen's early stopping needs to trust a quantile: below that the run is
#: invalid whatever it gives.
QUERIES = {"SingleStream": 64, "MultiStream": 662, "Offline": 1, "Server": 1000}
#: Without a wish, Server asks for this share of the Offline throughput ...
SERVER_SHARE = 0.5
#: ... within so many times the SingleStream latency.
SERVER_LATENCIES = 5.0
#: ... and where that bound is not met, for so much of the rate, in so many tries at most: Server's
#: result is a rate that holds its bound.
SERVER_STEP = 0.7
SERVER_TRIES = 5


@dataclass(frozen=True)
class Load:
    """How LoadGen is set.

    Attributes:
        seconds: Least duration of a scenario. MLPerf's own rules ask for 600.
        most_seconds: When a scenario is ended, valid or not.
        largest_batch: Most requests that are answered together.
        delay: Seconds that an incomplete batch waits for more.
        server_qps: Queries a second of Server; None takes :data:`SERVER_SHARE` of Offline, or less
            where that doesn't hold the bound.
        server_latency: Seconds within which 99 % of Server's queries have to be answered; None
            takes :data:`SERVER_LATENCIES` times SingleStream.
    """

    seconds: float
    most_seconds: float
    largest_batch: int
    delay: float
    server_qps: float | None
    server_latency: float | None


@dataclass(frozen=True)
class Outcome:
    """One scenario that ran.

    Attributes:
        work: Name of the work.
        summary: What LoadGen says.
        settings: What it was set to.
        batches: How many batches of each size the SUT answered.
        folder: Where LoadGen's files lie.
    """

    work: str
    summary: Summary
    settings: dict[str, Any]
    batches: dict[int, int]
    folder: Path = field(default=Path())


def loadgen() -> Any:
    """The library; BackendUnavailableError where it isn't installed."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        raise BackendUnavailableError(
            f"LoadGen isn't there ({error}); install it with: pip install 'hat-export[bench]'"
        ) from None
    return mlperf_loadgen


def run_scenarios(
    work: Work,
    wanted: Sequence[str],
    load: Load,
    folder: Path,
    progress: Progress,
) -> list[Outcome]:
    """Run scenarios on one kind of work, in the order of :data:`SCENARIOS`.

    Args:
        work: What requests ask for.
        wanted: Scenarios to run; Server without wishes needs no others, it measures them itself.
        load: How LoadGen is set.
        folder: Gets one folder a scenario with LoadGen's own files, and one for each rate of Server
            that did not hold.
        progress: Told what begins.
    """
    rate, latency = _calibrate(work, load.largest_batch)
    outcomes = []
    for scenario in SCENARIOS:
        if scenario not in wanted:
            continue
        progress.step(f"{work.name}: {scenario}")
        settings = _settings(scenario, load, rate, latency)
        place = folder / f"{work.name}-{scenario}"
        for old in folder.glob(f"{place.name}-not-held-*"):
            shutil.rmtree(old)
        place.mkdir(parents=True, exist_ok=True)
        summary, batches = _run(work, settings, load, place)
        tries = SERVER_TRIES if scenario == "Server" and load.server_qps is None else 1
        for number in range(1, tries):
            if summary.valid:
                break
            place.rename(folder / f"{place.name}-not-held-{number}")
            place.mkdir()
            settings["server_target_qps"] *= SERVER_STEP
            progress.step(
                f"{work.name}: {scenario} at {settings['server_target_qps']:.1f} queries/s"
            )
            summary, batches = _run(work, settings, load, place)
        outcomes.append(Outcome(work.name, summary, settings, batches, place))
        if scenario == "SingleStream":
            latency = summary.result / 1e3
        if scenario == "Offline":
            rate = summary.result
    return outcomes


def _calibrate(work: Work, largest: int) -> tuple[float, float]:
    """Samples a second in full batches, and seconds of a single one, after some warm-up."""
    full = [number % work.samples for number in range(largest)]

    def fewest(batch: Sequence[int]) -> float:
        calls = Timer().repeat(lambda: work.answer(batch), calls=5, warm_up=0)
        return min(call.own for call in calls)

    return largest / fewest(full), fewest([0])


def _settings(scenario: str, load: Load, rate: float, latency: float) -> dict[str, Any]:
    """LoadGen's settings by the names that it has for them."""
    settings: dict[str, Any] = {
        "scenario": scenario,
        "min_duration_ms": round(1e3 * load.seconds),
        "max_duration_ms": round(1e3 * load.most_seconds),
        "min_query_count": QUERIES[scenario],
    }
    if scenario == "SingleStream":
        settings["single_stream_expected_latency_ns"] = round(1e9 * latency / PREPARED)
    elif scenario == "MultiStream":
        settings["multi_stream_samples_per_query"] = STREAMS
        settings["multi_stream_expected_latency_ns"] = round(1e9 * STREAMS / rate / PREPARED)
    elif scenario == "Offline":
        # LoadGen sends so many samples at once; a quarter more lasts as long as asked for.
        settings["offline_expected_qps"] = 1.25 * rate
    else:
        settings["server_target_qps"] = load.server_qps or SERVER_SHARE * rate
        bound = load.server_latency or SERVER_LATENCIES * latency
        settings["server_target_latency_ns"] = round(1e9 * bound)
    return settings


def _run(
    work: Work, settings: dict[str, Any], load: Load, folder: Path
) -> tuple[Summary, dict[int, int]]:
    lg = loadgen()
    wanted = lg.TestSettings()
    wanted.mode = lg.TestMode.PerformanceOnly
    for name, value in settings.items():
        setattr(wanted, name, getattr(lg.TestScenario, value) if name == "scenario" else value)
    logs = lg.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False
    logs.enable_trace = False

    def done(requests: Sequence[Request]) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(r.identity, 0, 0) for r in requests])

    with Batcher(work.answer, done, load.largest_batch, load.delay) as batcher:

        def issue(queries: list[Any]) -> None:
            batcher.put([Request(query.id, query.index) for query in queries])

        sut = lg.ConstructSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(work.samples, work.samples, lambda _: None, lambda _: None)
        # In a thread of its own, so that Ctrl-C reaches us while LoadGen is at work.
        arguments = (sut, qsl, wanted, logs)
        test = threading.Thread(
            target=lg.StartTestWithLogSettings, args=arguments, name="loadgen", daemon=True
        )
        test.start()
        while test.is_alive():
            test.join(0.2)
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    if batcher.error is not None:
        raise batcher.error
    return read_summary(folder), dict(sorted(batcher.sizes.items()))
