"""The report of a comparison: for people, and as JSON."""

from __future__ import annotations

from typing import Any

from hat_export.parity import tables
from hat_export.parity.budget import Verdict
from hat_export.parity.changed_queries import change_to_json
from hat_export.parity.comparison import TIE_MARGIN
from hat_export.parity.gallery import make_gallery
from hat_export.parity.outcome import LOOKED_UP, SIDES, ParityOutcome
from hat_export.parity.statistics import to_json
from hat_export.report.report import Report


def parity_report(outcome: ParityOutcome) -> Report:
    """The report of a comparison."""
    parity, dataset = outcome.parity, outcome.dataset
    summary = [
        tables.verdict_sentence(
            outcome.verdict, outcome.judgements, outcome.checks, outcome.settings.strict
        ),
        tables.ranks_sentence(parity),
        *([outcome.kept.sentence()] if outcome.kept else []),
        tables.budget_sentence(outcome.judgements, outcome.settings.strict),
    ]
    shown = [tables.gate_table(outcome.deltas, outcome.judgements, dataset.name, parity)]
    if outcome.folds:
        shown.append(tables.fold_table(*outcome.folds))
    if outcome.attribution:
        summary.append(outcome.attribution.sentence())
        shown.append(tables.attribution_table(outcome.attribution))
    for found in outcome.localizations:
        summary.append(found.sentence())
        shown += tables.localization_tables(found)
    shown.append(tables.level_table(outcome.levels))
    if outcome.changed:
        shown.append(tables.changed_table(outcome.changed, len(parity.changed), dataset))
    shown += [tables.scorer_table(outcome.checks), tables.run_table(outcome.facts)]
    worst = outcome.changed[: outcome.settings.gallery]
    galleries = (make_gallery(worst, len(parity.changed), dataset),) if worst else ()
    undecided = outcome.verdict is Verdict.undecided
    return Report(
        "parity",
        f"Recall parity: {outcome.names[1]} against {outcome.names[0]}",
        None if undecided else outcome.passed,
        tuple(summary),
        tuple(shown),
        _data(outcome),
        galleries=galleries,
        undecided=undecided,
    )


def _data(outcome: ParityOutcome) -> dict[str, Any]:
    parity = outcome.parity
    sides = zip(
        SIDES,
        outcome.names,
        (parity.reference, parity.candidate),
        outcome.facts["scorers"],
        strict=True,
    )
    data: dict[str, Any] = {
        side: {"name": name, "scorer": scorer, **metrics.to_json()}
        for side, name, metrics, scorer in sides
    }
    data |= {
        "dataset": outcome.dataset.name,
        "images": parity.images,
        "captions": parity.captions,
        "verdict": outcome.verdict.value,
        "strict": outcome.settings.strict,
        "budget": dict(outcome.settings.budget),
        "judgements": [item.to_json() for item in outcome.judgements],
        "deltas": to_json(outcome.deltas),
        "levels": [
            {"deltas": to_json(found), "changed": len(item.changed)}
            for item, found in outcome.levels
        ],
        "score_difference": parity.score_difference,
        "top_10_kept": outcome.kept.to_json() if outcome.kept else None,
        "tie_margin": TIE_MARGIN,
        "scorer_checks": [check.to_json() for check in outcome.checks],
        "changed": [
            *(item.to_json(outcome.dataset) for item in outcome.changed),
            *(change_to_json(item, outcome.dataset) for item in parity.changed[LOOKED_UP:]),
        ],
        "seconds": outcome.facts["seconds"],
        "peak_memory_bytes": outcome.facts["peak_memory_bytes"],
        "private_memory_bytes": outcome.facts["private_memory_bytes"],
        "reused": outcome.facts["reused"],
        "environment": outcome.facts["environment"],
    }
    if outcome.folds:
        count, before, after = outcome.folds
        data["folds"] = {"count": count, "reference": dict(before), "candidate": dict(after)}
    if outcome.attribution:
        data["attribution"] = outcome.attribution.to_json()
    if outcome.localizations:
        data["localization"] = [found.to_json() for found in outcome.localizations]
    return data
