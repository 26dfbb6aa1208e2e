"""What LoadGen found, scenario by scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hat_export.benchmark.load.scenarios import Load, Outcome
from hat_export.benchmark.load.summary import STATISTICS
from hat_export.benchmark.load.work import Work
from hat_export.report.report import Report, Table

KIND = "load"
SCHEMA_VERSION = 1


def load_report(
    name: str,
    outcomes: Sequence[Outcome],
    works: Sequence[Work],
    load: Load,
    environment: Mapping[str, Any],
) -> Report:
    """The report of a run; judged by LoadGen's own conditions.

    Args:
        name: What to call the target.
        outcomes: What ran.
        works: The kinds of work among them.
        load: How LoadGen was set.
        environment: Machine, versions and hardware.
    """
    rows = []
    for outcome in outcomes:
        statistic = STATISTICS[outcome.summary.scenario]
        batches = sum(outcome.batches.values())
        requests = sum(size * count for size, count in outcome.batches.items())
        rows.append(
            (
                outcome.work,
                outcome.summary.scenario,
                statistic.name,
                f"{outcome.summary.result:,.2f} {statistic.unit}",
                "valid" if outcome.summary.valid else "INVALID",
                _asked(outcome.settings),
                f"{requests:,}",
                f"{requests / batches:.2f}" if batches else "",
            )
        )
    columns = ("", "scenario", "its statistic", "result", "LoadGen says", "asked for", "samples")
    included = " ".join(f"{work.name}: {work.included}." for work in works)
    note = (
        f"MLPerf LoadGen, performance mode, at least {load.seconds:g} s a scenario (a submission "
        "asks for 600 s and rules of its own: this is none). Batches are whatever waited when the "
        f"model became free, at most {load.largest_batch}"
        + (f", held back for {1e3 * load.delay:g} ms" if load.delay else "")
        + f". {included}"
    )
    table = Table("Load", (*columns, "mean batch"), tuple(rows), note)
    invalid = [o for o in outcomes if not o.summary.valid]
    summary = [f"{len(outcomes) - len(invalid)} of {len(outcomes)} scenarios valid."]
    summary += [
        f"{o.work} {o.summary.scenario}: not met: "
        f"{', '.join(o.summary.reasons) or 'see its summary file'}."
        for o in invalid
    ]
    data = {
        "schema_version": SCHEMA_VERSION,
        "target": name,
        "seconds": load.seconds,
        "largest_batch": load.largest_batch,
        "delay": load.delay,
        "outcomes": [
            {
                "work": o.work,
                "scenario": o.summary.scenario,
                "statistic": STATISTICS[o.summary.scenario].name,
                "unit": STATISTICS[o.summary.scenario].unit,
                "result": o.summary.result,
                "valid": o.summary.valid,
                "not_met": list(o.summary.reasons),
                "settings": o.settings,
                "batches": {str(size): count for size, count in o.batches.items()},
                "summary": o.summary.lines,
                "files": str(o.folder),
            }
            for o in outcomes
        ],
        "environment": dict(environment),
    }
    return Report(KIND, f"Load: {name}", not invalid, tuple(summary), (table,), data)


def _asked(settings: Mapping[str, Any]) -> str:
    if "server_target_qps" in settings:
        bound = settings["server_target_latency_ns"] / 1e6
        return f"{settings['server_target_qps']:,.1f} queries/s, 99 % within {bound:.1f} ms"
    if "multi_stream_samples_per_query" in settings:
        return f"{settings['multi_stream_samples_per_query']} samples a query"
    return ""
