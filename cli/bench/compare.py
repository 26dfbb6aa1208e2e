"""``hat-bench compare``: did a new version become worse than an old one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import ReportOption


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
    from hat_export.benchmark.compare import compare_reports

    common.check_report_paths(report)
    result = compare_reports(old, new, margin / 100)
    common.deliver(result, report)
    if result.passed is False:
        raise typer.Exit(1)
