"""Does ``hat-bench compare`` tell a slower target from the same one? Both error rates, measured.

Each repetition runs three latency measurements, each in a process of its own as users run them: a
bundle, the same bundle again, and the same bundle slowed by a share. The first is compared with
each of the others. What counts: how often equals are called different in any case, and how often
the slowdown is found in any case and in each.

A slowed target spins, in every encoder call and every score, for a share of the processor time that
the call has just taken on the calling thread, as slower code would.

    python bench/reproducibility.py BUNDLE --out runs/reproducibility
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hat_export
from hat_export.base.machine import environment, hardware
from hat_export.base.progress import SILENT
from hat_export.benchmark.latency.cases import Sizes
from hat_export.benchmark.latency.compare import MARGIN, Change, compare_runs
from hat_export.benchmark.latency.record import Run, measured, read_run
from hat_export.benchmark.latency.report import latency_report
from hat_export.benchmark.latency.run import Effort, Opener, measure_targets
from hat_export.report.report import write_report
from hat_export.runtime.session import Session

SIZES = Sizes(images=(1,), texts=(32,), words=16, scores=((8, 32),), galleries=())


def slow_down(session: Session, share: float) -> Session:
    """Make a session's verbs take longer by a share of what they take."""

    def slowed(verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            result = verb(*arguments)
            until = started + (1 + share) * (time.thread_time() - started)
            while time.thread_time() < until:
                pass
            return result

        return call

    for name in ("_encode_images", "_encode_texts", "_score"):
        setattr(session, name, slowed(getattr(session, name)))
    return session


def measure(bundle: Path, share: float, threads: int, effort: Effort, path: Path) -> None:
    """One latency run of a bundle, slowed by a share, as a report."""

    def open_bundle(count: int) -> Session:
        session = hat_export.open_bundle(bundle, threads=count, verify=False)
        return slow_down(session, share) if share else session

    openers = [Opener(bundle.name, open_bundle)]
    timings, _ = measure_targets(openers, SIZES, threads, effort, SILENT)
    target = {"name": bundle.name}
    run = Run(measured(timings), (target,), {"slowed_by": share}, environment())
    write_report(latency_report(run), path)


def repeat(arguments: argparse.Namespace) -> list[tuple[list[Change], list[Change]]]:
    """Changes of the equal and of the slowed pair, per repetition."""
    outcomes = []
    for number in range(1, arguments.repetitions + 1):
        runs = []
        for name, slowed in (("first", 0.0), ("same", 0.0), ("slowed", arguments.slowdown)):
            path = arguments.out / f"{name}_{number}.json"
            command = [sys.executable, __file__, str(arguments.bundle), "--one", str(path)]
            for option in ("seconds", "threads", "passes"):
                command += [f"--{option}", str(getattr(arguments, option))]
            subprocess.run([*command, "--slowdown", str(slowed)], check=True)
            runs.append(read_run(path))
        equal, slower = compare_runs(runs[0], runs[1]), compare_runs(runs[0], runs[2])
        outcomes.append((equal, slower))
        done = f"{number} of {arguments.repetitions}"
        print(f"{done}: same: {_words(equal)}; slowed: {_words(slower)}", flush=True)
    return outcomes


def _words(changes: list[Change]) -> str:
    counts = Counter(change.verdict for change in changes)
    return ", ".join(f"{count} {word}" for word, count in counts.items())


def evaluate(outcomes: list[tuple[list[Change], list[Change]]], share: float) -> dict[str, Any]:
    """Error rates and intervals, as numbers."""
    equal = [changes for changes, _ in outcomes]
    slowed = [[c for c in changes if affected(c)] for _, changes in outcomes]
    cases = [c for changes in slowed for c in changes]
    untouched = [c for _, changes in outcomes for c in changes if not affected(c)]
    wrong = [c for changes in equal for c in changes if c.verdict != "no difference"]
    return {
        "repetitions": len(outcomes),
        "slowdown": share,
        "margin": MARGIN,
        "cases": len(equal[0]),
        "equal_called_different": sum(
            any(c.verdict != "no difference" for c in changes) for changes in equal
        ),
        "equal_cases_called_different": len(wrong)
        + sum(c.verdict != "no difference" for c in untouched),
        "equal_cases": sum(map(len, equal)) + len(untouched),
        "slowdown_missed": sum(
            not any(c.verdict == "slower" for c in changes) for changes in slowed
        ),
        "slowed_cases_found": sum(c.verdict == "slower" for c in cases),
        "slowed_cases": len(cases),
        "interval_holds_truth": sum(c.ratio.low <= 1 + share <= c.ratio.high for c in cases),
        "interval_holds_one": sum(
            c.ratio.low <= 1 <= c.ratio.high for changes in equal for c in changes
        ),
        "median_estimate": sorted(c.ratio.value for c in cases)[len(cases) // 2],
        "median_waited": sorted(sum(c.waited) / 2 for c in cases)[len(cases) // 2],
        "median_half_width": sorted(c.ratio.high / c.ratio.value - 1 for c in cases)[
            len(cases) // 2
        ],
    }


def affected(change: Change) -> bool:
    """Whether a slowed session slows the case; preprocessing is not a verb of it."""
    return change.case.component != "preprocessing"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/reproducibility"))
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--slowdown", type=float, default=0.1)
    parser.add_argument("--seconds", type=float, default=0.2, help="a case, over all passes")
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        effort = Effort(arguments.passes, arguments.seconds, 3 * arguments.passes)
        path, share = arguments.one, arguments.slowdown
        measure(arguments.bundle, share, arguments.threads, effort, path)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    facts = environment() | {"hardware": hardware()}
    found = evaluate(repeat(arguments), arguments.slowdown)
    found |= {"threads": arguments.threads, "passes": arguments.passes}
    found["seconds"] = round(time.perf_counter() - started, 1)
    print(json.dumps(found, indent=1))
    path = arguments.out / "reproducibility.json"
    path.write_text(json.dumps(found | facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
