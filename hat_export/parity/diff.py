"""Two parity reports side by side: what became better, what worse, and which queries changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hat_export.errors import InputError
from hat_export.parity.statistics import RANKS, RECALLS, label
from hat_export.parity.tables import interval, signed
from hat_export.report.report import Report, Table

#: Queries listed by name.
LISTED = 20


def compare_parity(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> Report:
    """Two parity reports of one dataset.

    Args:
        first: Content of the first.
        second: Content of the second.
        names: What to call them.

    Returns:
        Which metrics and queries differ. It passes unless the second's verdict is worse.

    Raises:
        InputError: if they are of different datasets, or a field is missing.
    """
    try:
        return _compare_parity(first["data"], second["data"], names)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{names[0]}, {names[1]}: not parity reports of this version "
            f"({type(error).__name__}: {error}); run hat-bench parity again"
        ) from None


def _compare_parity(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> Report:
    for key in ("dataset", "images", "captions"):
        if first[key] != second[key]:
            raise InputError(
                f"{names[0]} is of {key} {first[key]!r}, {names[1]} of {second[key]!r}; only "
                "reports on the same data can be compared"
            )
    rows = []
    for metric in (*RECALLS, "rsum", *RANKS):
        one, other = first["deltas"][metric], second["deltas"][metric]
        rows.append(
            (
                label(metric),
                f"{one['candidate']:.2f}",
                f"{other['candidate']:.2f}",
                signed(other["candidate"] - one["candidate"]),
                *(
                    f"{signed(found['difference'])} ({interval(found['low'], found['high'])})"
                    for found in (one, other)
                ),
            )
        )
    columns = ("candidates' metric", "A", "B", "B - A", "A to its reference", "B to its reference")
    note = f"{first['dataset']}: {first['images']:,} images, {first['captions']:,} captions."
    tables = [Table("Recall", columns, tuple(rows), note), _component_table(first, second)]
    changes = [{_query(item): item for item in found["changed"]} for found in (first, second)]
    gone = [changes[0][key] for key in changes[0] if key not in changes[1]]
    new = [changes[1][key] for key in changes[1] if key not in changes[0]]
    both = [key for key in changes[0] if key in changes[1]]
    tables.append(_query_table(new, gone))
    facts = [
        ("reference", *(str(found["reference"]["name"]) for found in (first, second))),
        ("candidate", *(str(found["candidate"]["name"]) for found in (first, second))),
        ("verdict", *(str(found["verdict"]) for found in (first, second))),
        ("score difference", *(f"{found['score_difference']:.2g}" for found in (first, second))),
        ("changed ranks", *(f"{len(found['changed']):,}" for found in (first, second))),
    ]
    facts += _version_rows(first["environment"], second["environment"])
    tables.append(Table("What was compared", ("", "A", "B"), tuple(facts)))
    order = ("passed", "could not judge", "failed")
    verdicts = [order.index(found["verdict"]) for found in (first, second)]
    worse = verdicts[1] > verdicts[0]
    rsum = [found["deltas"]["rsum"]["candidate"] for found in (first, second)]
    summary = (
        f"B {'is WORSE than' if worse else 'is no worse than'} A by its verdict: "
        f"{first['verdict']}, then {second['verdict']}.",
        f"rsum {rsum[0]:.2f}, then {rsum[1]:.2f} ({rsum[1] - rsum[0]:+.2f}). Changed ranks: "
        f"{len(new):,} new in B, {len(gone):,} gone, {len(both):,} in both.",
        f"A: {names[0]}. B: {names[1]}.",
    )
    data = {
        "reports": list(names),
        "verdicts": [first["verdict"], second["verdict"]],
        "metrics": {
            metric: [found["deltas"][metric]["candidate"] for found in (first, second)]
            for metric in (*RECALLS, "rsum", *RANKS)
        },
        "changed_new": [_query(item) for item in new],
        "changed_gone": [_query(item) for item in gone],
    }
    return Report("parity comparison", "Parity: B against A", not worse, summary, (*tables,), data)


def _query(item: Mapping[str, Any]) -> str:
    return f"{item['direction']} {item['query']}"


def _component_table(first: Mapping[str, Any], second: Mapping[str, Any]) -> Table:
    """Costs by component, where a report has them."""
    costs: dict[str, list[str]] = {}
    for side, found in enumerate((first, second)):
        for swap in found.get("attribution", {}).get("swaps", ()):
            if swap["level"] is None:
                row = costs.setdefault(str(swap["component"]), ["", ""])
                row[side] = signed(swap["deltas"]["rsum"]["candidate"] - _reference(swap))
    rows = tuple((name, *row) for name, row in costs.items())
    note = (
        "Points of rsum that the reference gains or loses by the candidate's part; empty where it "
        "wasn't looked for."
    )
    return Table("What each component costs", ("swapped", "A", "B"), rows, note)


def _reference(swap: Mapping[str, Any]) -> float:
    return float(swap["deltas"]["rsum"]["reference"])


def _query_table(new: list[Mapping[str, Any]], gone: list[Mapping[str, Any]]) -> Table:
    rows = tuple(
        (
            _query(item),
            where,
            f"{item['before']:,}",
            f"{item['after']:,}",
            "yes" if item["tie"] else "no",
            str(item["text"]),
        )
        for where, items in (("B", new), ("A", gone))
        for item in items[:LISTED]
    )
    columns = ("query", "changed only in", "rank before", "rank after", "tie", "asked")
    return Table("Queries that only one of them changes", columns, rows, f"At most {LISTED} each.")


def _version_rows(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Versions and machine facts that differ."""
    rows = []
    for group in ("machine", "versions"):
        one, other = first[group], second[group]
        for key in {**one, **other}:
            pair = str(one.get(key, "")), str(other.get(key, ""))
            if pair[0] != pair[1] and key != "load_average":
                rows.append((str(key), *pair))
    return rows
