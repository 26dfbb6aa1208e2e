"""``hat-bench``: does it retrieve the same, and how fast is it? A module per command."""

from __future__ import annotations

import typer

from hat_export.cli import common
from hat_export.cli.bench.compare import compare
from hat_export.cli.bench.latency import latency
from hat_export.cli.bench.load import load
from hat_export.cli.bench.parity import parity
from hat_export.cli.bench.preflight import preflight
from hat_export.cli.bench.profile import profile
from hat_export.cli.bench.report import report
from hat_export.cli.bench.scoring import scoring
from hat_export.cli.bench.search import search

app = typer.Typer(
    help="Check recall parity and measure latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def program() -> None:
    """Check recall parity and measure latency."""


#: In the order in which ``--help`` lists them.
COMMANDS = (
    parity,
    latency,
    load,
    profile,
    compare,
    report,
    preflight,
    scoring,
    search,
)

for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """Console script ``hat-bench``."""
    common.run(app, "hat-bench")
