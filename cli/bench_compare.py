"""``hat-bench compare``: two reports of a kind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import ReportOption


def compare(
    first: Annotated[Path, typer.Argument(metavar="A.json", help="The earlier report.")],
    second: Annotated[Path, typer.Argument(metavar="B.json", help="The later report.")],
    report: ReportOption = None,
) -> None:
    """Compare two reports of the same kind; exit status 1 if the second is worse."""
    from hat_export.report_comparison import compare_reports

    common.check_report_paths(report)
    result = compare_reports(first, second)
    common.deliver(result, report)
    if result.passed is False:
        raise typer.Exit(1)
