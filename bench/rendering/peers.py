"""The project beside other tools."""

from __future__ import annotations

from rendering.markdown import Entry, machine, milliseconds, table


def encoders(entry: Entry) -> str:
    """Encoders by every peer."""
    points = list(dict.fromkeys(row["point"] for row in entry["rows"]))
    rows = []
    for name in dict.fromkeys(row["peer"] for row in entry["rows"]):
        found = {row["point"]: row for row in entry["rows"] if row["peer"] == name}
        cells = [
            f"{milliseconds(found[point]['median_ms'])} ({found[point]['share_of_bound']:.0%})"
            if found[point]["median_ms"]
            else "not measured"
            for point in points
        ]
        rows.append((name, *cells))
    columns = ("ms (share of the bound)", *points)
    return f"{table(columns, rows)}\n\n{machine(entry)}"


def quantization(entry: Entry) -> str:
    """Every quantized variant: size, times and what it does to the results."""
    done = [row for row in entry["rows"] if "error" not in row]
    first = done[0]
    points = list(first.get("ms", {}))
    recalled = "rsum" in first
    columns = ["", "MB", "smaller", *(f"{point}, ms" for point in points)]
    columns += ["rsum", "lost, 95 %", "top 10 kept, 95 %"] if recalled else []
    columns += ["image error", "text error", "made in s", "peak GB"]
    rows = []
    for row in done:
        cells = [row["variant"], f"{row['bytes'] / 1e6:.1f}"]
        cells.append(f"{first['bytes'] / row['bytes']:.2f}")
        cells += [milliseconds(row["ms"][point]) for point in points]
        exact = row["variant"].startswith("float32")
        if recalled:
            low, high = row["interval"]
            kept = row["kept"]
            cells.append(f"{row['rsum']:.2f}")
            cells.append("" if exact else f"{row['lost']:.2f} ({-high:.2f} to {-low:.2f})")
            cells.append(
                f"{kept['both']:.2f} % ({kept['low']:.2f} to {kept['high']:.2f})"
                if kept and not exact
                else ""
            )
        cells += ["" if exact else f"{row['errors'][key]:.3f}" for key in ("images", "texts")]
        made = row.get("made")
        cells += [f"{made['seconds']:.0f}", f"{made['peak_bytes'] / 1e9:.1f}"] if made else ["", ""]
        rows.append(tuple(cells))
    lines = [table(tuple(columns), rows), ""]
    lines += [
        f"Not measured: {row['variant']}: {row['error']}\n"
        for row in entry["rows"]
        if "error" in row
    ]
    sides = [
        [row for row in done if row["variant"].startswith(start)]
        for start in ("hat-export", "onnxruntime")
    ]
    if all(sides):
        fastest = [
            (point, *(min(row["ms"][point] for row in side) for side in sides)) for point in points
        ]
        found = ", ".join(
            f"{point}: {milliseconds(ours)} against {milliseconds(theirs)} ms ({theirs / ours:.2f})"
            for point, ours, theirs in fastest
        )
        lines += [f"Our fastest against the fastest of ONNX Runtime's tools: {found}.", ""]
    return "\n".join([*lines, machine(entry)])
