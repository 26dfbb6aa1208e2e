"""``hat-export``: from a checkpoint to a bundle, and a look into one; a module per command."""

from __future__ import annotations

from hat_export.cli import common
from hat_export.cli.command import program
from hat_export.cli.export import (
    index,
    index_delete,
    inspect,
    keygen,
    onnx,
    quantize,
    search,
    sign,
    triton,
    trt,
)

#: In the order in which ``--help`` lists them.
COMMANDS = (
    onnx.COMMAND,
    trt.COMMAND,
    quantize.COMMAND,
    inspect.COMMAND,
    index.COMMAND,
    index_delete.COMMAND,
    search.COMMAND,
    triton.COMMAND,
    keygen.COMMAND,
    sign.COMMAND,
)

app = program("hat-export", "Export trained HAT models for production.", COMMANDS)


def main() -> None:
    """Console script ``hat-export``."""
    common.run_program(app, "hat-export")
