"""Results files: a line of JSON for each measurement, with machine and versions."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hat_export.base.machine import environment, hardware

FOLDER = Path(__file__).resolve().parent / "results"


def append(
    folder: Path,
    part: str,
    rows: list[dict[str, Any]],
    seconds: float,
    beside: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """Add a measurement of a part to its file.

    Args:
        folder: Of the results files.
        part: Its name.
        rows: What was measured.
        seconds: How long that took.
        beside: Versions of other tools that took part.
    """
    facts = hardware()
    surroundings = environment()
    surroundings["versions"] |= beside
    entry = {
        "part": part,
        "date": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        **surroundings,
        "hardware": {key: facts[key] for key in ("cpu_flags", "gpu", "affinity", "load_averages")},
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{part}.jsonl"
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")
    return path


def latest(folder: Path, part: str) -> dict[str, Any] | None:
    """The last measurement of a part; None if there is none."""
    path = folder / f"{part}.jsonl"
    if not path.is_file():
        return None
    lines = path.read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1]) if lines else None
