"""Compares two records: what is equal in bytes, what in form and results, and what differs."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from forms import leaves

PARTS = ("bytes", "form", "results")
#: Files whose bytes differ from run to run of the same program.
UNREPRODUCIBLE = {
    "*.build.log": "holds durations and the name of a temporary folder",
    "*.engine": "TensorRT-RTX numbers its own tensors differently from build to build",
    "*.plan": "a copy of an engine",
}
#: Differences that are shown of an item.
SHOWN = 4


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        item: Case and file.
        threads: Numbers of threads for which it holds.
        parts: ``equal``, ``differ`` or empty, for bytes, form and results.
        verdict: ``equal``, ``equal form``, ``not reproducible``, ``differs``, ``missing``, ``new``.
        what: What differs, shortened.
        reason: Why; from the list of expected differences.
    """

    item: str
    threads: str
    parts: tuple[str, str, str]
    verdict: str
    what: str
    reason: str

    @property
    def unexplained(self) -> bool:
        """Whether it is a difference without a reason."""
        return self.verdict in ("differs", "missing") and not self.reason


def compare(
    old: Mapping[str, Any], new: Mapping[str, Any], expected: Iterable[str]
) -> tuple[list[Row], list[str]]:
    """All items of the cases that two records have in common.

    Args:
        old: A record.
        new: Another.
        expected: Lines of a pattern of items and a reason.

    Returns:
        Rows by item and threads, and warnings: other surroundings, cases that only one record has,
        reasons that nothing needs.
    """
    warnings = [
        f"{fact} differ: {old[fact]} before, {new[fact]} after"
        for fact in ("machine", "versions", "stripped")
        if old[fact] != new[fact]
    ]
    reasons = dict(
        line.split(maxsplit=1) for line in expected if line.strip() and not line.startswith("#")
    )
    rows = []
    for threads in (key for key in {**old, **new} if key.startswith("threads")):
        sides = [one.get(threads, {"items": {}})["items"] for one in (old, new)]
        first, second = ({item.split("/")[0] for item in side} for side in sides)
        if first != second:
            alone = ", ".join(sorted(first ^ second))
            warnings.append(f"{threads}: only one record has {alone}")
        before, after = (
            {item: one for item, one in side.items() if item.split("/")[0] in first & second}
            for side in sides
        )
        names = {item: _name_in(item, after) for item in before}
        added = {item: item for item in after if item not in {*names, *names.values()}}
        for item, name in (names | added).items():
            row = judge(item, before.get(item), after.get(name))
            said = [f"now {Path(name).name}"] if name != item else []
            said += [row.what] if row.what else []
            reason = next((why for key, why in reasons.items() if fnmatch.fnmatch(item, key)), "")
            rows.append(
                replace(row, threads=threads[8:], what="; ".join(said), reason=reason.strip())
            )
    needed = [row.item for row in rows if row.verdict != "equal"]
    warnings += [
        f"no difference needs the reason of {pattern}"
        for pattern in reasons
        if not fnmatch.filter(needed, pattern)
    ]
    return sorted(rows, key=lambda row: (row.item, row.threads)), warnings


def _name_in(item: str, items: Mapping[str, Any]) -> str:
    """The item, or what it is called where its arrays are safetensors."""
    other = item.removesuffix(".npz") + ".safetensors"
    return other if item not in items and item.endswith(".npz") and other in items else item


def judge(item: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Row:
    """How two descriptions of an item compare."""
    if before is None or after is None:
        return Row(item, "", ("", "", ""), "new" if before is None else "missing", "", "")
    one, two, three = (_compared(before.get(part), after.get(part)) for part in PARTS)
    parts = one, two, three
    if "differ" not in parts:
        return Row(item, "", parts, "equal", "", "")
    if two == "equal" and three != "differ":
        return Row(item, "", parts, "equal form", "", "")
    known = next((why for name, why in UNREPRODUCIBLE.items() if fnmatch.fnmatch(item, name)), "")
    if known and not two:
        return Row(item, "", parts, "not reproducible", known, "")
    return Row(item, "", parts, "differs", _what(before, after), "")


def _compared(before: Any, after: Any) -> str:
    if before is None and after is None:
        return ""
    return "equal" if before == after else "differ"


def _what(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The first differences of two descriptions, by what says more than a hash if anything does."""
    for part in ("said", "summary", "form", "results", "bytes"):
        one, two = (dict(leaves(each.get(part), part)) for each in (before, after))
        keys = [key for key in {**one, **two} if one.get(key) != two.get(key)]
        if keys:
            found = [f"{key}: {one.get(key)!s:.40} → {two.get(key)!s:.40}" for key in keys[:SHOWN]]
            more = [f"{len(keys) - SHOWN} more"] if len(keys) > SHOWN else []
            return "; ".join(found + more)
    return ""


def merge(rows: Sequence[Row], every: bool) -> list[Row]:
    """Rows that differ in threads alone become one, and those of a case that say the same.

    Args:
        rows: Sorted by item.
        every: Whether each item keeps its row.
    """
    by_threads: dict[Row, list[str]] = {}
    for row in rows:
        by_threads.setdefault(replace(row, threads=""), []).append(row.threads)
    merged = [replace(row, threads=", ".join(found)) for row, found in by_threads.items()]
    if every:
        return merged
    by_case: dict[Row, list[str]] = {}
    for row in merged:
        case, file = row.item.split("/", 1)
        same = row.parts if row.verdict != "equal" else ("equal", "equal", "equal")
        by_case.setdefault(replace(row, item=case, parts=same), []).append(file)
    return [replace(row, item=_title(row, files)) for row, files in by_case.items()]


def _title(row: Row, files: Sequence[str]) -> str:
    if len(files) == 1:
        return f"{row.item}/{files[0]}"
    return f"{row.item}: " + (f"{len(files)} items" if row.verdict == "equal" else ", ".join(files))


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = ["| item | threads | bytes | form | results | verdict | what | reason |", "| --- " * 8]
    lines[1] += "|"
    for row in rows:
        cells = (row.item, row.threads, *row.parts, row.verdict, row.what, row.reason)
        lines.append(f"| {' | '.join(' '.join(one.replace('|', '/').split()) for one in cells)} |")
    return "\n".join(lines)


def totals(rows: Sequence[Row]) -> str:
    """How many items have which verdict."""
    counts = Counter(row.verdict for row in rows)
    unexplained = sum(row.unexplained for row in rows)
    found = ", ".join(f"{number} {verdict}" for verdict, number in counts.most_common())
    return f"{len(rows)} items: {found}; {unexplained} differences without a reason"
