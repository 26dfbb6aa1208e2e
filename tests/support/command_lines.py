"""The command lines as a subprocess runs them."""

from __future__ import annotations

import sys

PROGRAMS = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}


def command(*arguments: object) -> list[str]:
    program, *rest = map(str, arguments)
    return [sys.executable, "-m", PROGRAMS[program], *rest]
