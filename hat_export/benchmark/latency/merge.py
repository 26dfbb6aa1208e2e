"""Several reports as one: runs side by side, with recall where parity reports are among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hat_export.benchmark.latency.recalls import KIND as PARITY
from hat_export.benchmark.latency.recalls import recalls_in
from hat_export.benchmark.latency.record import KIND, Run, run_of
from hat_export.benchmark.latency.report import latency_report
from hat_export.errors import InputError
from hat_export.report.reader import read_report
from hat_export.report.report import Report, Table


def merged_report(paths: Sequence[Path]) -> Report:
    """One report of several.

    Latency runs are shown side by side: within a run, targets are compared by its rounds, across
    runs by the anchors of both. Parity reports give the recall-latency plot. Of every other kind
    the summary is shown.

    Raises:
        InputError: if a file is no report, or none of them is a latency report.
    """
    runs: list[tuple[str, Run]] = []
    recalls: dict[str, float] = {}
    others: list[tuple[str, ...]] = []
    for path in paths:
        content = read_report(path)
        if content["kind"] == KIND:
            runs.append((path.stem, run_of(content, path)))
        elif content["kind"] == PARITY:
            recalls |= recalls_in(content, path)
        others.append(_line(path, content))
    if not runs:
        raise InputError(
            "none of the files is a latency report; name at least one that hat-bench latency wrote"
        )
    result = latency_report(_side_by_side(runs), recalls)
    columns = ("file", "kind", "passed", "summary")
    listed = Table("Merged reports", columns, tuple(others))
    return replace(result, tables=(listed, *result.tables))


def _side_by_side(runs: Sequence[tuple[str, Run]]) -> Run:
    if len(runs) == 1:
        return runs[0][1]
    names = [name for name, _ in runs]
    labels = [
        name if names.count(name) == 1 else f"{name} {number}"
        for number, name in enumerate(names, start=1)
    ]
    timings, targets, cases, machines = [], [], [], []
    for label, (_, run) in zip(labels, runs, strict=True):
        timings += [replace(timing, run=label) for timing in run.timings]
        targets += [
            dict(target) | {"name": f"{target['name']} [{label}]"} for target in run.targets
        ]
        cases += [dict(case) | {"run": label} for case in run.bounds.get("cases", [])]
        machines += list(run.bounds.get("machines", []))
    bounds = {"machines": machines, "cases": cases} if cases else {}
    environment = {
        f"{label}: {part}": value
        for label, (_, run) in zip(labels, runs, strict=True)
        for part, value in run.environment.items()
    }
    return Run(tuple(timings), tuple(targets), runs[0][1].settings, _prefixed(environment), bounds)


def _prefixed(environment: dict[str, Any]) -> dict[str, Any]:
    """Facts named by their run, so that those of several runs stand side by side."""
    found: dict[str, Any] = {}
    for name, value in environment.items():
        label = name.rpartition(": ")[0]
        if isinstance(value, dict):
            found[name] = {f"{label}: {key}": fact for key, fact in value.items()}
        else:
            found[name] = value
    return found


def _line(path: Path, content: dict[str, Any]) -> tuple[str, ...]:
    passed = content.get("passed")
    judged = "" if passed is None else "yes" if passed else "NO"
    summary = content.get("summary")
    lines = [str(line) for line in summary] if isinstance(summary, list) else []
    return path.name, str(content["kind"]), judged, lines[0] if lines else ""
