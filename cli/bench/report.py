"""``hat-bench report``: several reports as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import ReportOption


def report_command(
    reports: Annotated[
        list[Path],
        typer.Argument(help="JSON reports: latency runs, and parity for recall over latency."),
    ],
    report: ReportOption = None,
) -> None:
    """Merge reports: latency runs side by side, recall over latency, summaries of the others."""
    from hat_export.benchmark.latency.merge import merged_report

    common.check_report_paths(report)
    common.deliver(merged_report(reports), report)


COMMAND = Command(
    "report",
    report_command,
    examples=("hat-bench report old.json new.json parity.json --report all.html",),
)
