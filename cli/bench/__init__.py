"""``hat-bench``: does it retrieve the same, and how fast is it? A module per command."""

from __future__ import annotations

from hat_export.cli import common
from hat_export.cli.bench import (
    compare,
    latency,
    load,
    parity,
    preflight,
    profile,
    report,
    scoring,
    search,
)
from hat_export.cli.command import program

#: In the order in which ``--help`` lists them.
COMMANDS = (
    parity.COMMAND,
    latency.COMMAND,
    load.COMMAND,
    profile.COMMAND,
    compare.COMMAND,
    report.COMMAND,
    preflight.COMMAND,
    scoring.COMMAND,
    search.COMMAND,
)

app = program("hat-bench", "Check recall parity and measure latency.", COMMANDS)


def main() -> None:
    """Console script ``hat-bench``."""
    common.run_program(app, "hat-bench")
