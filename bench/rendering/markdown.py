"""Markdown of a table, of a machine, and of numbers with the unit and digits that suit."""

from __future__ import annotations

from typing import Any

#: A line of a results file.
Entry = dict[str, Any]


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = "| --- |" + " ---: |" * (len(columns) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def machine(entry: Entry) -> str:
    """What a figure was measured on, in one line."""
    facts, versions = entry["machine"], entry["versions"]
    names = {"torch": "torch", "onnxruntime": "ONNX Runtime", "numpy": "numpy"} | {
        "openvino": "OpenVINO",
        "nncf": "NNCF",
    }
    used = ", ".join(f"{name} {versions[key]}" for key, name in names.items() if key in versions)
    best = next(
        (
            name
            for flag, name in (("amx_tile", "AMX"), ("avx512f", "AVX-512"), ("avx2", "AVX2"))
            if flag in entry["hardware"]["cpu_flags"]
        ),
        facts["architecture"],
    )
    return f"{facts['cpu']} ({best}), {facts['cores']} cores, {used}; {entry['date']}."


def milliseconds(value: float) -> str:
    """With three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def duration(seconds: float) -> str:
    """With the unit that suits."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= (2 if unit == "days" else 1) * length:
            value = seconds / length
            return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{1e3 * seconds:.0f} ms"


def rounded(value: float) -> str:
    """With two digits that count."""
    return f"{float(f'{value:.2g}'):,.0f}"


def volume(size: float) -> str:
    """Bytes with the unit that suits."""
    value, unit = (size / 1e12, "TB") if size >= 1e11 else (size / 1e9, "GB")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:,.2f} {unit}"
