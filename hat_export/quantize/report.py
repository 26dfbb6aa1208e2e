"""The report of a search: every plan tried, and which of them no other one beats."""

from __future__ import annotations

from hat_export.base.machine import environment
from hat_export.bundle.bundle import Bundle
from hat_export.quantize.schemes import FP32
from hat_export.quantize.search import Outcome, Tried
from hat_export.report.plots.pareto import Point, front, plot_pareto
from hat_export.report.report import Figure, Report, Table


def search_report(outcome: Outcome, source: Bundle) -> Report:
    """Tables and charts of a search.

    Args:
        outcome: What was found.
        source: The float32 bundle.
    """
    task, best, reference = outcome.search, outcome.best, outcome.tried[0]
    budget = ", ".join(f"{key} {value:g}" for key, value in task.budget.items())
    images = len(task.data.entries)
    summary = [
        f"Chosen: {best.name} ({best.plan.title()}): rsum {best.rsum:.2f} against "
        f"{reference.rsum:.2f}, {best.bytes / 1e6:.2f} MB against "
        f"{reference.bytes / 1e6:.2f}, {1e3 * best.seconds:.2f} ms against "
        f"{1e3 * reference.seconds:.2f}.",
        f"Budget: a drop of {budget} points at most, on {task.data.name} ({images} images). "
        + (
            "The whole 95 % interval of the loss keeps it."
            if best.verdict == "passed"
            else "The observed loss keeps it; the 95 % interval reaches beyond: with these images "
            "it can't be told for sure. Prove it on more: hat-bench parity."
        ),
    ]
    if outcome.correlation is not None:
        summary.append(
            f"Rank correlation of predicted change and lost rsum over {len(outcome.tried) - 1} "
            f"plans: {outcome.correlation:.2f}."
        )
    rows = tuple(_row(one, reference, best) for one in outcome.tried)
    columns = (
        *("plan", "layers", "MB", "smaller", "ms", "faster", "rsum", "lost", "worst end"),
        *("predicted", "measured", "budget"),
    )
    schemes = tuple(next(iter(outcome.noise.values()), {}))
    sensitivity = tuple(
        (block, *(f"{values[name]:.2g}" for name in schemes))
        for block, values in sorted(
            outcome.noise.items(), key=lambda item: -max(item[1].values(), default=0)
        )
    )
    kept = tuple(best.plan.kept.items())
    tables = (
        Table(
            "Plans tried",
            columns,
            rows,
            "ms: one image and one caption, without waits for a core and at one speed of the "
            "machine, as a reference workload tells it. Lost: rsum in points, with the worst end "
            "of its 95 % interval. Predicted and measured: variance of the scores' change over "
            "that of the scores.",
        ),
        Table(
            "Sensitivity",
            ("block", *schemes),
            sensitivity,
            "Variance of the scores' change over that of the scores, the block quantized alone.",
        ),
        *([Table("Kept in float32", ("layer", "reason"), kept)] if kept else []),
    )
    data = {
        "budget": dict(task.budget),
        "objective": task.objective,
        "dataset": task.data.name,
        "images": images,
        "chosen": best.name,
        "correlation": outcome.correlation,
        "tried": [one.to_json() for one in outcome.tried],
        "pareto": {
            cost: [one.name for one in front(_points(outcome, cost))]
            for cost in ("latency", "size")
        },
        "noise": {block: dict(values) for block, values in outcome.noise.items()},
        "preflight": outcome.preflight.to_json(),
        "environment": environment(),
    }
    return Report(
        "quantization",
        f"Quantization of {source.manifest.spec.name}",
        best.within,
        tuple(summary),
        tables,
        data,
        tuple(
            Figure(title, plot_pareto(title, axis, "rsum", _points(outcome, cost)))
            for title, axis, cost in (
                ("Latency and recall", "ms", "latency"),
                ("Size and recall", "MB", "size"),
            )
        ),
    )


def _row(one: Tried, reference: Tried, best: Tried) -> tuple[str, ...]:
    return (
        f"{one.name} (chosen)" if one is best else one.name,
        one.plan.title() if one.plan.layers else FP32,
        f"{one.bytes / 1e6:.2f}",
        f"{reference.bytes / one.bytes:.2f}x",
        f"{1e3 * one.seconds:.2f}",
        f"{reference.seconds / one.seconds:.2f}x",
        f"{one.rsum:.2f}",
        f"{one.lost:+.2f}",
        f"{one.worst:+.2f}",
        f"{one.predicted:.2g}",
        f"{one.measured:.2g}",
        one.verdict,
    )


def _points(outcome: Outcome, cost: str) -> list[Point]:
    scale = 1e3 if cost == "latency" else 1e-6
    return [Point(one.name, scale * one.cost(cost), one.rsum) for one in outcome.tried]
