"""What the project measures of itself: latency, scoring, recall, search."""

from __future__ import annotations

from rendering.markdown import Entry, machine, milliseconds, table

COMPONENTS = {
    "preprocessing": "preprocessing, batch {}",
    "images": "image encoder, batch {}",
    "texts": "text encoder, {} words",
    "scores": "scores, {} images and captions",
    "end to end": "end to end, {}",
}


def latency(entry: Entry) -> str:
    """Medians of every target, and the speed of the last against the first."""
    timings = [row for row in entry["rows"] if row["component"] != "process"]
    targets = list(dict.fromkeys(row["target"] for row in timings))
    rows = []
    for key in dict.fromkeys((row["component"], row["size"]) for row in timings):
        found = {r["target"]: r for r in timings if (r["component"], r["size"]) == key}
        last = found[targets[-1]]
        speed, share = last["speed"], last["share_of_bound"]
        rows.append(
            (
                COMPONENTS[key[0]].format(key[1]),
                *(milliseconds(found[target]["p50_ms"]) for target in targets),
                f"{speed['value']:.1f}x ({speed['low']:.1f} to {speed['high']:.1f})",
                "" if share is None else f"{share:.0%}",
            )
        )
    process = {row["target"]: row for row in entry["rows"] if row["component"] == "process"}
    for title, field, scale in (
        ("size, MB", "bytes", 1e-6),
        ("peak memory, MB", "peak_bytes", 1e-6),
        ("cold start, s", "cold_start_seconds", 1.0),
    ):
        values = [process[target][field] for target in targets]
        cells = ["" if v is None else f"{v * scale:,.{0 if scale < 1 else 1}f}" for v in values]
        rows.append((title, *cells, "", ""))
    columns = ("ms", *(f"`{name}`" for name in targets), "last against first", "of its bound")
    threads = timings[0]["threads"]
    return f"{table(columns, rows)}\n\n{threads} threads. {machine(entry)}"


def scoring(entry: Entry) -> str:
    """The kernel's time a pair, all levels together."""
    row = next(row for row in entry["rows"] if row["level"] == "all")
    product = "a bare matrix product of the kernel's size, the best of several libraries"
    kernel = f"the kernel: {row['share_of_product']:.2f} of the product's speed"
    rows = [(product, f"{row['product_ms']:.4f}"), (kernel, f"{row['kernel_ms']:.4f}")]
    if row["formula_ms"] is not None:
        faster = f"{kernel}, {row['factor']:.0f} times faster than the formula"
        rows = [
            ("the published formula in PyTorch, float32", f"{row['formula_ms']:.3f}"),
            rows[0],
            (faster, rows[1][1]),
        ]
    return f"{table(('', 'ms a pair'), rows)}\n\n{machine(entry)}"


def recall(entry: Entry) -> str:
    """Recall of both sides, and how many ranks changed."""
    keys = [f"{way}_{at}" for way in ("i2t", "t2i") for at in ("r1", "r5", "r10")]
    columns = ("", "i2t R@1", "R@5", "R@10", "t2i R@1", "R@5", "R@10", "rsum")
    rows = [
        (f"`{row['target']}`", *(f"{row[key]:.2f}" for key in (*keys, "rsum")))
        for row in entry["rows"]
    ]
    return f"{table(columns, rows)}\n\n{ranks(entry)}"


def ranks(entry: Entry) -> str:
    """How many ranks are the same on both sides, as a sentence."""
    last = entry["rows"][-1]
    total = last["images"] + last["captions"]
    same = total - last["changed_ranks"]
    return (
        f"All {total:,} ranks are identical."
        if same == total
        else f"{same:,} of {total:,} ranks are identical."
    )


def search(entry: Entry) -> str:
    """What two-stage search saves on the demo data."""
    found = entry["rows"][0]
    lines = []
    for name in ("pooled", "level3"):
        if name not in found:
            continue
        part = found[name]
        points = {point["rescore"]: point for point in part["latency"]["points"]}
        exact = part["latency"]["points"][-1]["median_ms"]
        fast = points[part["chosen"]]["median_ms"]
        lines.append(
            f"- {name} candidates: {part['chosen']} rescored, chosen on another split; "
            f"{fast:.2f} ms a caption, {exact / fast:.1f} times faster than exact search."
        )
    return "\n".join([*lines, "", machine(entry)])


def full(entry: Entry) -> str:
    """The complete score of official size."""
    row = entry["rows"][0]
    return (
        f"A complete score of {row['images']:,} images x {row['captions']:,} captions of official "
        f"size takes {row['seconds']:.0f} seconds and {row['peak_memory_bytes'] / 1e9:.1f} GB. "
        f"{machine(entry)}"
    )


def large(entry: Entry) -> str:
    """One caption against many images."""
    rows = [
        (
            f"{row['images']:,}",
            row["search"],
            f"{row['median_ms']:,.1f}",
            f"{row['file_bytes'] / 1e9:.2f}",
        )
        for row in entry["rows"]
    ]
    columns = ("images", "search", "ms a caption", "index GB")
    return f"{table(columns, rows)}\n\n{machine(entry)}"


def reproducibility(entry: Entry) -> str:
    """Error rates of comparisons."""
    row = entry["rows"][0]
    count, share = row["repetitions"], f"{row['slowdown']:.0%}"
    rows = [
        (
            "two runs of the same bundle called different",
            f"{row['equal_called_different']} of {count}",
        ),
        (f"a slowdown of {share} missed", f"{row['slowdown_missed']} of {count}"),
        (
            "unchanged cases called different",
            f"{row['equal_cases_called_different']} of {row['equal_cases']}",
        ),
        ("slowed cases found", f"{row['slowed_cases_found']} of {row['slowed_cases']}"),
        (
            "intervals that hold the true slowdown",
            f"{row['interval_holds_truth']} of {row['slowed_cases']}",
        ),
        ("median estimate of the slowdown", f"{row['median_estimate'] - 1:+.1%}"),
        ("median half width of its interval", f"{row['median_half_width']:.1%}"),
        ("time that threads waited for a core", f"{row['median_waited']:.0%}"),
    ]
    note = f"{row['passes']} passes a run, {row['threads']} thread."
    return f"{table(('', f'{count} repetitions'), rows)}\n\n{note} {machine(entry)}"
