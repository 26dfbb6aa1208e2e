"""``hat-bench compare``: did a new version become worse than an old one?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hat_export.cli import common
from hat_export.cli.options import ReportOption

if TYPE_CHECKING:
    from hat_export.report import Report


def compare(
    old: Annotated[Path, typer.Argument(help="JSON report of the version before.")],
    new: Annotated[Path, typer.Argument(help="JSON report of the version after.")],
    margin: Annotated[
        float,
        typer.Option(min=0, max=100, help="Latency: change in percent that is of no interest."),
    ] = 2.0,
    report: ReportOption = None,
) -> None:
    """Compare two reports of one kind; exit status 1 if the new one is worse beyond the noise."""
    from hat_export.errors import InputError
    from hat_export.latency.record import read_json_report

    common.check_report_paths(report)
    before, after = (read_json_report(path, tuple(COMPARISONS)) for path in (old, new))
    if before["kind"] != after["kind"]:
        raise InputError(
            f"{old} is a {before['kind']} report, {new} a {after['kind']} report; compare two of "
            "one kind"
        )
    result = COMPARISONS[before["kind"]]((old, before), (new, after), margin / 100)
    common.deliver(result, report)
    if not result.passed:
        raise typer.Exit(1)


#: A report's file and its content.
Side = tuple[Path, Mapping[str, Any]]


def _latency(old: Side, new: Side, margin: float) -> Report:
    from hat_export.latency.compare import compare_runs, comparison_report
    from hat_export.latency.record import run_of

    runs = [run_of(content, path) for path, content in (old, new)]
    changes = compare_runs(runs[0], runs[1], margin)
    names = (str(old[0]), str(new[0]))
    return comparison_report(runs[0], runs[1], changes, names, margin)


#: Kind of report -> how two of them are compared.
COMPARISONS: dict[str, Callable[[Side, Side, float], Report]] = {"latency": _latency}
