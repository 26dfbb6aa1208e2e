"""Recall of targets, from parity reports, to set beside their latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hat_export.errors import InputError
from hat_export.report.reader import read_report

KIND = "parity"


def recalls_of(paths: Sequence[Path]) -> dict[str, float]:
    """rsum by target's name, of both sides of every report.

    Raises:
        InputError: if a file is no parity report.
    """
    found: dict[str, float] = {}
    for path in paths:
        found |= recalls_in(read_report(path, (KIND,)), path)
    return found


def recalls_in(content: Mapping[str, Any], path: Path) -> dict[str, float]:
    """rsum by target's name in one report; ``path`` is for messages."""
    try:
        data = content["data"]
        return {
            str(data[side]["name"]): float(data[side]["rsum"])
            for side in ("reference", "candidate")
        }
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: a parity report without the rsum of both sides") from None
