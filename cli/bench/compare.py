"""``hat-bench compare``: did a new version become worse than an old one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import Panel, ReportOption, own_option


def compare_command(
    old: Annotated[Path, typer.Argument(help="JSON report of the version before.")],
    new: Annotated[Path, typer.Argument(help="JSON report of the version after.")],
    margin: Annotated[
        float,
        own_option(
            "--margin",
            Panel.data,
            "Latency: change in percent that is of no interest.",
            least=0,
            most=100,
        ),
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


COMMAND = Command(
    "compare",
    compare_command,
    examples=(
        "hat-bench compare old.json new.json",
        "hat-bench compare old.json new.json --margin 5 --report change.html",
    ),
)
