"""What a parity report shows, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hat_export.data.dataset import CaptionDataset
from hat_export.parity.attribution import Attribution
from hat_export.parity.budget import Judgement, Verdict
from hat_export.parity.changed_queries import ChangedQuery, query_text
from hat_export.parity.comparison import DIRECTIONS, TIE_MARGIN, Parity
from hat_export.parity.scorer_check import ScorerCheck
from hat_export.parity.statistics import CONFIDENCE, RANKS, RECALLS, Delta, label
from hat_export.report.report import Table
from hat_export.score.metrics import RECALL_AT

if TYPE_CHECKING:
    from hat_export.parity.localize import Difference, Localization

VERDICTS = {
    Verdict.passed: "Parity passed",
    Verdict.failed: "Parity FAILED",
    Verdict.undecided: "Parity could not be judged",
}

#: Changed queries in a table; the JSON has all.
LISTED = 20


def verdict_sentence(
    verdict: Verdict, judgements: Sequence[Judgement], checks: Sequence[ScorerCheck], strict: bool
) -> str:
    """The verdict, and why."""
    against = [
        item.sentence()
        for item in judgements
        if item.verdict is Verdict.failed
        or (item.verdict is Verdict.undecided and (strict or verdict is Verdict.undecided))
    ]
    against += [check.sentence() for check in checks if not check.passed]
    return f"{VERDICTS[verdict]}{': ' if against else ''}{'; '.join(against)}."


def budget_sentence(judgements: Sequence[Judgement], strict: bool) -> str:
    """What was allowed, and what it was held against."""
    limits = ", ".join(f"{label(item.metric)} {item.limit:g}" for item in judgements)
    how = "the interval's worst end has to keep it" if strict else "judged on the interval"
    return f"Largest allowed drop in points, {how}: {limits}."


def ranks_sentence(parity: Parity) -> str:
    """How many ranks changed."""
    total = parity.images + parity.captions
    ties = sum(item.tie for item in parity.changed)
    return (
        f"{total - len(parity.changed):,} of {total:,} ranks identical; {len(parity.changed):,} "
        f"changed, {ties:,} of them between items that tie within {TIE_MARGIN:g}. "
        f"Largest score difference {parity.score_difference:.2g}."
    )


def gate_table(
    deltas: Mapping[str, Delta], judgements: Sequence[Judgement], dataset: str, parity: Parity
) -> Table:
    """Every metric with its interval and its judgement."""
    judged = {item.metric: item for item in judgements}
    rows = []
    for metric in (*RECALLS, "rsum", *RANKS):
        delta, item = deltas[metric], judged.get(metric)
        rows.append(
            (
                label(metric),
                f"{delta.reference:.2f}",
                f"{delta.candidate:.2f}",
                signed(delta.difference),
                interval(delta.low, delta.high),
                "" if delta.lost is None else f"{delta.lost:,}",
                "" if delta.gained is None else f"{delta.gained:,}",
                "" if delta.p_value is None else f"{delta.p_value:.3g}",
                "" if item is None else f"{item.limit:g}",
                "" if item is None else item.verdict.value,
                "" if delta.by_ties is None else signed(delta.by_ties),
            )
        )
    columns = (
        "",
        "reference",
        "candidate",
        "difference",
        f"{CONFIDENCE:.0%} interval",
        "lost",
        "gained",
        "McNemar p",
        "allowed drop",
        "verdict",
        "if ties were won",
    )
    note = (
        f"{dataset}: {parity.images:,} images, {parity.captions:,} captions. Recalls in percent of "
        "queries, ranks counted from 1. Intervals: paired bootstrap over images, each with its "
        "captions. McNemar's exact test takes queries as independent, which captions of one image "
        "are not. Tie rule: a score equal to the right answer's counts as ranked before it; the "
        "last column is what the candidate would gain if every tie were decided the other way."
    )
    return Table("Recall", columns, tuple(rows), note)


def fold_table(count: int, before: Mapping[str, float], after: Mapping[str, float]) -> Table:
    """Mean recalls over folds."""
    keys = (*RECALLS, "rsum")
    rows = [
        (name, *(f"{found[key]:.2f}" for key in keys))
        for name, found in (("reference", before), ("candidate", after))
    ]
    rows.append(("difference", *(signed(after[key] - before[key]) for key in keys)))
    note = f"Mean over {count} consecutive folds of the images, each with its own captions."
    return Table(f"Recall over {count} folds", ("", *map(label, keys)), tuple(rows), note)


def level_table(levels: Sequence[tuple[Parity, Mapping[str, Delta]]]) -> Table:
    """Recalls of each level alone."""
    keys = (*RECALLS, "rsum")
    rows = []
    for number, (parity, deltas) in enumerate(levels, start=1):
        real = sum(not item.tie for item in parity.changed)
        rows.append(
            (f"level {number}, reference", *(f"{deltas[k].reference:.2f}" for k in keys), "", "")
        )
        rows.append(
            (
                f"level {number}, difference",
                *(signed(deltas[key].difference) for key in keys),
                interval(deltas["rsum"].low, deltas["rsum"].high),
                f"{real:,}",
            )
        )
    columns = ("", *map(label, keys), "interval of rsum", "changed ranks")
    note = "Ranked by one level's score alone. Changed ranks: beyond ties."
    return Table("Each level alone", columns, tuple(rows), note)


def attribution_table(attribution: Attribution) -> Table:
    """What each swap costs."""
    rows = []
    for swap in attribution.swaps:
        if swap.same:
            if swap.level is None:
                rows.append((swap.name, "the same in both", *[""] * 6))
            continue
        rsum = swap.deltas["rsum"]
        rows.append(
            (
                swap.name,
                signed(rsum.difference),
                interval(rsum.low, rsum.high),
                *(signed(swap.deltas[f"{side}_r1"].difference) for side in DIRECTIONS),
                f"{swap.changed:,}",
                f"{swap.ties:,}",
                f"{swap.score_difference:.2g}",
            )
        )
    columns = (
        "swapped",
        "rsum",
        "interval",
        *(f"{side} R@{RECALL_AT[0]}" for side in DIRECTIONS),
        "changed ranks",
        "ties",
        "score difference",
    )
    note = (
        "The reference with one part of the candidate: what its recall gains or loses, in points. "
        "Costs of parts need not add up to that of everything."
    )
    return Table("What each component costs", columns, tuple(rows), note)


def changed_table(changed: Sequence[ChangedQuery], total: int, dataset: CaptionDataset) -> Table:
    """The worst of the changed queries."""
    rows = []
    for item in changed[:LISTED]:
        change = item.change
        text = query_text(change, dataset)
        rows.append(
            (
                f"{change.direction} {change.query}",
                f"{change.before:,}",
                f"{change.after:,}",
                f"{change.score_before:.5f}",
                f"{change.score_after:.5f}",
                f"{change.margin:.2g}",
                "yes" if change.tie else "no",
                text,
            )
        )
    columns = (
        "query",
        "rank before",
        "rank after",
        "score before",
        "score after",
        "margin",
        "tie",
        "asked",
    )
    note = (
        f"{total:,} in all; worst first (a recall lost, then the rank's growth), at most {LISTED} "
        "here. Scores are the right answer's. Margin: the reference's largest score distance "
        "between the right answer and what changed sides with it."
    )
    return Table("Changed queries", columns, tuple(rows), note)


def scorer_table(checks: Sequence[ScorerCheck]) -> Table:
    """Each session's own scores beside the kernel's."""
    rows = tuple(
        (
            f"{check.side}: {check.scorer}",
            f"{check.pairs:,}",
            f"{check.difference:.2g}",
            f"{check.tolerance:g}",
            "yes" if check.passed else "NO",
        )
        for check in checks
    )
    note = (
        "Both sides are scored by the native kernel, each with its own constants. A sample of "
        "pairs was encoded again and scored by what each session itself scores with."
    )
    columns = ("", "pairs", "largest difference", "tolerance", "equal")
    return Table("Scores of the sessions themselves", columns, rows, note)


def interval(low: float, high: float) -> str:
    """Both ends of an interval of a difference in points."""
    return f"{signed(low)} to {signed(high)}"


def signed(value: float) -> str:
    """A difference in points with its sign; zero has none."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def localization_tables(found: Localization) -> list[Table]:
    """Errors of every layer, and of every node of the layer at fault."""

    def cells(difference: Difference) -> tuple[str, str, str]:
        return (
            f"{difference.cosine:.6f}",
            f"{difference.largest:.2g}",
            f"{difference.relative:.2g}",
        )

    first = found.first
    rows = tuple(
        (item.layer, *cells(item.total), *cells(item.own), "first over" if item is first else "")
        for item in found.layers
    )
    kinds = ("cosine", "max error", "relative")
    columns = ("layer", *kinds, *(f"own {kind}" for kind in kinds), f"bound {found.bound:g}")
    note = (
        "What leaves each layer, against the reference: in a run of the whole graph, and (own) of "
        "the layer alone with the reference's inputs. "
    )
    if found.disturbed:
        note += (
            f"{len(found.disturbed)} tensors were left out, because making them outputs changes "
            "what the graph computes."
        )
    else:
        note += "Reading them changed no bit of the graph's outputs."
    shown = [Table(f"Layers of the {found.graph} graph", columns, rows, note)]
    if found.nodes:
        layer = first.layer if first else ""
        nodes = tuple(
            (
                item.node.removeprefix(f"{layer}/"),
                item.operator,
                *cells(item.error),
                "first over" if item is found.first_node else "",
                ", ".join(name.removeprefix(f"{layer}.") for name in item.weights),
            )
            for item in found.nodes
        )
        shown.append(
            Table(
                f"Nodes of {layer}",
                ("node", "operator", *kinds, "", "weights"),
                nodes,
                "With the reference's inputs of the layer.",
            )
        )
    return shown


def run_table(facts: Mapping[str, Any]) -> Table:
    """Where the time went, and on what machine."""
    peaks = (
        ("peak memory without mapped files", facts["private_memory_bytes"]),
        ("peak memory with them", facts["peak_memory_bytes"]),
    )
    rows = [(name, f"{seconds:,.1f} s") for name, seconds in facts["seconds"].items()]
    rows += [(name, f"{peak / 1e9:.2f} GB") for name, peak in peaks if peak is not None]
    for side, reused in facts["reused"].items():
        rows.append(
            (
                f"found encoded, {side}",
                f"{reused['images']:,} images, {reused['captions']:,} different captions",
            )
        )
    for group in facts["environment"].values():
        rows += [(str(key), str(value)) for key, value in group.items()]
    return Table("Run and machine", ("", "value"), tuple(rows))
