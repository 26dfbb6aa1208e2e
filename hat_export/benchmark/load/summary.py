"""LoadGen's own summary file, and which of its lines is a scenario's result."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hat_export.errors import InputError

SUMMARY = "mlperf_log_summary.txt"


@dataclass(frozen=True)
class Statistic:
    """What a scenario is judged by.

    Attributes:
        line: Pattern of its name in the summary.
        name: What reports call it.
        unit: Unit in reports.
        scale: Factor from the summary's unit to it.
    """

    line: str
    name: str
    unit: str
    scale: float


#: Scenario -> its own statistic, as MLPerf Inference defines it.
STATISTICS = {
    "SingleStream": Statistic(r"90(\.0)?th percentile latency \(ns\)", "p90 latency", "ms", 1e-6),
    "MultiStream": Statistic(
        r"99(\.0)?th percentile latency \(ns\)", "p99 latency of 8 samples", "ms", 1e-6
    ),
    "Server": Statistic(r"Completed samples per second", "queries completed", "queries/s", 1.0),
    "Offline": Statistic(r"Samples per second", "throughput", "samples/s", 1.0),
}


@dataclass(frozen=True)
class Summary:
    """One run of a scenario.

    Attributes:
        scenario: Its name.
        valid: Whether LoadGen's own conditions were met.
        result: The scenario's statistic, in the unit of :data:`STATISTICS`.
        reasons: LoadGen's conditions that were not met.
        lines: Everything in the file, by name.
    """

    scenario: str
    valid: bool
    result: float
    reasons: tuple[str, ...]
    lines: dict[str, str]


def read_summary(folder: Path) -> Summary:
    """The summary that LoadGen wrote to a folder.

    Raises:
        InputError: if there is none, or it lacks the scenario's statistic.
    """
    path = folder / SUMMARY
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: LoadGen wrote no summary ({error.strerror})") from None
    lines: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition(":")
        if separator:
            lines.setdefault(name.strip(), value.strip())
    scenario = lines.get("Scenario", "")
    statistic = STATISTICS.get(scenario)
    if statistic is None:
        raise InputError(f"{path}: a summary of the scenario {scenario!r}, which is not known")
    values = [value for name, value in lines.items() if re.fullmatch(statistic.line, name)]
    if not values:
        raise InputError(f"{path}: the scenario's statistic is missing ({statistic.name})")
    failed = tuple(
        name.removesuffix(" satisfied")
        for name, value in lines.items()
        if name.endswith(" satisfied") and value.upper() == "NO"
    )
    return Summary(
        scenario,
        lines.get("Result is") == "VALID",
        float(values[0]) * statistic.scale,
        failed,
        lines,
    )
