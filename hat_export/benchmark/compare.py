"""Two reports of the same kind side by side, by a table of what can be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hat_export.benchmark.latency.compare import compare_runs, comparison_report
from hat_export.benchmark.latency.record import run_of
from hat_export.errors import InputError
from hat_export.parity.diff import compare_parity
from hat_export.report.reader import read_report
from hat_export.report.report import Report

#: A report's file and its content.
Side = tuple[Path, Mapping[str, Any]]

#: Compares two reports of one kind; the number is the change in latency that is of no interest.
Comparer = Callable[[Side, Side, float], Report]


def _parity(old: Side, new: Side, margin: float) -> Report:
    return compare_parity(old[1], new[1], (str(old[0]), str(new[0])))


def _latency(old: Side, new: Side, margin: float) -> Report:
    before, after = (run_of(content, path) for path, content in (old, new))
    changes = compare_runs(before, after, margin)
    return comparison_report(before, after, changes, (str(old[0]), str(new[0])), margin)


#: Kind of report -> what compares two of them. One entry for every kind that can be compared.
COMPARERS: dict[str, Comparer] = {"parity": _parity, "latency": _latency}


def compare_reports(old: Path, new: Path, margin: float) -> Report:
    """Compare two JSON reports of the same kind.

    Args:
        old: The earlier, or the one to hold against.
        new: The later.
        margin: Latency: relative change that is of no interest.

    Raises:
        InputError: if one isn't a report, they are of different kinds, or of one that can't be
            compared.
    """
    before, after = (read_report(path, tuple(COMPARERS)) for path in (old, new))
    if before["kind"] != after["kind"]:
        raise InputError(
            f"{old} is a {before['kind']} report, {new} a {after['kind']} report; compare two of "
            "one kind"
        )
    return COMPARERS[before["kind"]]((old, before), (new, after), margin)
