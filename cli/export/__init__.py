"""``hat-export``: from a checkpoint to a bundle, and a look into one; a module per command."""

from __future__ import annotations

import typer

from hat_export.cli import common
from hat_export.cli.export.index import index
from hat_export.cli.export.index_delete import index_delete
from hat_export.cli.export.inspect import inspect
from hat_export.cli.export.keygen import keygen
from hat_export.cli.export.onnx import onnx
from hat_export.cli.export.quantize import quantize
from hat_export.cli.export.search import search
from hat_export.cli.export.sign import sign
from hat_export.cli.export.triton import triton
from hat_export.cli.export.trt import trt

app = typer.Typer(
    help="Export trained HAT models for production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def program() -> None:
    """Export trained HAT models for production."""


#: In the order in which ``--help`` lists them.
COMMANDS = (
    *(onnx, trt, quantize, inspect, index, index_delete, search, triton),
    *(keygen, sign),
)

for _command in COMMANDS:
    app.command()(_command)


def main() -> None:
    """Console script ``hat-export``."""
    common.run(app, "hat-export")
