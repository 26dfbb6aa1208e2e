"""Tables of what the attacks on writing, running and building have found, for docs/security.md."""

from __future__ import annotations

from typing import Any

from rendering.markdown import Entry, table

Rows = list[dict[str, Any]]


def inputs(entry: Entry) -> str:
    """What a part of bench/attack tried and found; its rows name their own columns."""
    rows = entry["rows"]
    cells = [
        tuple(f"{cell:,}" if isinstance(cell, (int, float)) else cell for cell in row.values())
        for row in rows
    ]
    facts = entry["machine"]
    took = f"{entry['seconds'] / 60:.0f} minutes on {facts['cores']} cores; {entry['date']}."
    return f"{table(tuple(rows[0]), cells)}\n\n{took}"


def kills(rows: Rows) -> str:
    """What was there after each kill."""
    keys = ("kills", "while_writing", "left_old", "left_nothing", "left_part", "left_new")
    columns = ("command", "kills", "while it wrote", "old", "nothing yet", "part", "new")
    columns += ("corrupted", "strays after the next run")
    shown = [
        (
            f"`{row['command']}`",
            *(str(row[key]) for key in keys),
            str(len(row["corrupted"])),
            str(row["strays_after_undisturbed"]),
        )
        for row in rows
    ]
    total = sum(row["kills"] for row in rows)
    corrupted = sum(len(row["corrupted"]) for row in rows)
    return (
        f"{total} kills, {corrupted} corrupted results.\n\n{table(columns, shown)}\n\n"
        "Runs that ended before their kill are looked at, but not counted as kills. A part is a "
        "whole number of committed images, from which the next run went on."
    )


def faults(rows: Rows) -> str:
    """Trials of every fault with every command, and what was found."""
    names = list(dict.fromkeys(row["fault"] for row in rows))
    commands = list(dict.fromkeys(row["command"] for row in rows))
    found = {(row["fault"], row["command"]): row for row in rows}

    def cell(fault: str, command: str) -> str:
        row = found.get((fault, command))
        if row is None or not row["trials"]:
            return ""
        bad = len(row["findings"])
        return f"{row['trials']}" + (f" (**{bad}**)" if bad else "")

    shown = [(fault, *(cell(fault, command) for command in commands)) for fault in names]
    findings = [
        f"- {row['fault']}, `{row['command']}`: {text.splitlines()[0][:200]}"
        for row in rows
        for text in row["findings"]
    ]
    text = table(("trials (**findings**)", *(f"`{name}`" for name in commands)), shown)
    total = sum(row["trials"] for row in rows)
    return "\n".join([f"{total} trials, {len(findings)} open findings.", "", text, "", *findings])


def sanitizers(rows: Rows) -> str:
    """Random shapes per sanitizer and kernel, all paths together."""
    shown = []
    for sanitizer, kernel in dict.fromkeys((row["sanitizer"], row["kernel"]) for row in rows):
        some = [row for row in rows if (row["sanitizer"], row["kernel"]) == (sanitizer, kernel)]
        paths = ", ".join(row["path"] for row in some)
        shapes = sum(row["shapes"] for row in some)
        reports = sum(len(row["reports"]) for row in some)
        shown.append((kernel, sanitizer, paths, f"{shapes:,}" if shapes else "", str(reports)))
    return table(("kernel", "sanitizer", "instruction paths", "shapes", "reports"), shown)


def concurrency(rows: Rows) -> str:
    """Memory and differences under load."""
    shown = [
        (
            row["load"],
            f"{row['growth_bytes'] / 1e6:+.2f}",
            f"{row['slope_bytes_per_call']:+.0f}",
            str(row["different"]),
            str(row.get("descriptors", "")),
            str(row.get("threads", "")),
        )
        for row in rows
    ]
    columns = ("after warm-up", "memory, MB", "bytes a call", "other results")
    return table((*columns, "descriptors", "threads"), shown)


def reproducible(rows: Rows) -> str:
    """Files that are the same, byte by byte."""
    shown = [(f"`{row['export']}`", str(row["files"]), str(row["identical"])) for row in rows]
    return table(("export", "files", "identical"), shown)
