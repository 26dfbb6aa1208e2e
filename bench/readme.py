"""Writes the figures in README and docs from the results files, so that none is typed by hand.

A place for figures lies between ``<!-- figures: PART -->`` and ``<!-- end of figures -->``.

    python bench/readme.py           # write
    python bench/readme.py --check   # exit status 1 if a file says something else
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import attack_tables  # noqa: E402
import results  # noqa: E402

#: Files that hold figures.
FILES = (
    ROOT / "README.md",
    *(
        ROOT / "docs" / f"{name}.md"
        for name in ("benchmarks", "capacity", "deploy", "quantization", "security")
    ),
)
PLACE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
Entry = dict[str, Any]

COMPONENTS = {
    "preprocessing": "preprocessing, batch {}",
    "images": "image encoder, batch {}",
    "texts": "text encoder, {} words",
    "scores": "scores, {} images and captions",
    "end to end": "end to end, {}",
}


def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table whose first column is text and whose others are numbers."""
    rule = "| --- |" + " ---: |" * (len(columns) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], rule, *lines[1:]])


def machine(entry: Entry) -> str:
    """What a figure was measured on, in one line."""
    facts, versions = entry["machine"], entry["versions"]
    names = {"torch": "torch", "onnxruntime": "ONNX Runtime", "numpy": "numpy"}
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
    last = entry["rows"][-1]
    total = last["images"] + last["captions"]
    same = total - last["changed_ranks"]
    ranks = (
        f"All {total:,} ranks are identical."
        if same == total
        else f"{same:,} of {total:,} ranks are identical."
    )
    return f"{table(columns, rows)}\n\n{ranks}"


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


def load(entry: Entry) -> str:
    """LoadGen's scenarios."""
    rows = [
        (
            f"{row['work']}, {row['scenario']}",
            row["statistic"],
            f"{row['result']:,.2f} {row['unit']}",
            "valid" if row["valid"] else f"invalid, not met: {', '.join(row['not_met'])}",
        )
        for row in entry["rows"]
    ]
    columns = ("", "its statistic", "result", "LoadGen says")
    return f"{table(columns, rows)}\n\n{machine(entry)}"


def peers(entry: Entry) -> str:
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


def attack(entry: Entry) -> str:
    """What a part of bench/attack tried and found; its rows name their own columns."""
    rows = entry["rows"]
    cells = [
        tuple(f"{cell:,}" if isinstance(cell, (int, float)) else cell for cell in row.values())
        for row in rows
    ]
    facts = entry["machine"]
    took = f"{entry['seconds'] / 60:.0f} minutes on {facts['cores']} cores; {entry['date']}."
    return f"{table(tuple(rows[0]), cells)}\n\n{took}"


def _attack_table(render: Callable[[list[Entry]], str]) -> Callable[[Entry], str]:
    return lambda entry: f"{render(entry['rows'])}\n\n{machine(entry)}"


def runtime(entry: Entry) -> str:
    """Size of the environment without torch, and how long a start takes."""
    row = entry["rows"][0]
    largest = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in row["largest"])
    rows = [(name, f"{seconds:.2f}") for name, seconds in row["starts"].items()]
    used = machine(entry | {"versions": row["versions"]})
    return (
        f"The environment takes {row['bytes'] / 1e9:.2f} GB; the largest packages: {largest}. "
        f"A new process, demo model:\n\n{table(('', 's'), rows)}\n\n{used}"
    )


def serving(entry: Entry) -> str:
    """Throughput of the server with and without dynamic batching."""
    found = {(r["model"], r["clients"], r["batching"]): r["per_second"] for r in entry["rows"]}
    models = list(dict.fromkeys(row["model"] for row in entry["rows"]))
    rows = [
        (
            str(clients),
            *(f"{found[m, clients, batching]:,.0f}" for m in models for batching in (False, True)),
        )
        for clients in sorted({row["clients"] for row in entry["rows"]})
    ]
    columns = [cell for m in models for cell in (f"{m}/s one by one", "batched")]
    versions = {"versions": entry["rows"][0]["versions"]}
    return f"{table(('clients', *columns), rows)}\n\n{machine(entry | versions)}"


#: What a core costs an hour, and a GB on disk a month, in USD: assumed.
CORE_HOUR, GB_MONTH = 0.04, 0.05
#: Candidates that two-stage search scores exactly, and the images of a shard.
CANDIDATES, SHARD = 1000, 1_000_000


def capacity(entry: Entry) -> str:
    """Rates of one core, and what they come to for many images."""
    row = entry["rows"][0]
    images, pairs, pooled = (row[f"{name}_per_second"] for name in ("images", "pairs", "pooled"))
    rates = [
        ("images encoded, of 500 x 375 pixels, a second", f"{images:.2f}"),
        ("captions encoded, of 16 word pieces, a second", f"{row['captions_per_second']:.1f}"),
        ("pairs scored exactly, a second", f"{pairs:,.0f}"),
        ("pooled vectors compared, a second", f"{pooled:,.0f}"),
        ("bytes of an image in a float16 index", f"{row['float16_bytes']:,}"),
        ("the same, int8", f"{row['int8_bytes']:,}"),
        ("of these its pooled vectors", f"{row['pooled_bytes']:,}"),
    ]
    sizes = (10**6, 10**9)
    rescored = CANDIDATES / pairs
    lines = {
        "encoding, core-hours": lambda n: f"{n / images / 3600:,.0f}",
        "encoding on 64 cores": lambda n: duration(n / images / 64),
        "encoding on 4,096 cores": lambda n: duration(n / images / 4096),
        f"encoding at {CORE_HOUR} USD a core-hour": lambda n: (
            f"{n / images / 3600 * CORE_HOUR:,.0f} USD"
        ),
        "index, float16": lambda n: volume(n * row["float16_bytes"]),
        "index, int8": lambda n: volume(n * row["int8_bytes"]),
        f"float16 at {GB_MONTH} USD a GB and month": lambda n: (
            f"{n * row['float16_bytes'] / 1e9 * GB_MONTH:,.0f} USD"
        ),
        "pooled vectors in memory, float32": lambda n: volume(2 * n * row["pooled_bytes"]),
        "exact search of one caption, one core": lambda n: duration(n / pairs),
        f"two-stage, {CANDIDATES:,} rescored, one core": lambda n: duration(n / pooled + rescored),
        f"two-stage, shards of {SHARD:,}, a core each": lambda n: (
            f"{n // SHARD:,} x {duration(SHARD / pooled + rescored)}"
        ),
    }
    many = [(name, *(value(n) for n in sizes)) for name, value in lines.items()]
    disk = 1e9 / row["float16_bytes"]
    return "\n".join(
        [
            table(("one core", ""), rates),
            "",
            machine(entry),
            "",
            table(("", "1 million images", "1 billion images"), many),
            "",
            f"- **Two stages** take over from about {rounded(pairs)} images, where one core needs "
            f"a second to score all exactly; rescoring {CANDIDATES:,} candidates takes "
            f"{duration(rescored)} whatever the size.",
            f"- **Shards** take over from about {rounded(pooled)} images, where one core needs "
            "a second to compare a caption with every pooled vector.",
            f"- **Several writers:** a disk of 1 GB/s takes {rounded(disk)} images a second, the "
            f"work of about {rounded(disk / images)} cores; more than that want several indexes.",
        ]
    )


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


RENDERERS: dict[str, Callable[[Entry], str]] = {
    "attack_inputs": attack,
    "attack_fuzz": attack,
    **{
        f"attack_{name}": _attack_table(render)
        for name, render in (
            ("kills", attack_tables.kills),
            ("faults", attack_tables.faults),
            ("sanitizers", attack_tables.sanitizers),
            ("concurrency", attack_tables.concurrency),
            ("reproducible", attack_tables.reproducible),
        )
    },
    "demo": latency,
    "official": latency,
    "scoring": scoring,
    "recall": recall,
    "search": search,
    "full": full,
    "large": large,
    "load": load,
    "peers": peers,
    "reproducibility": reproducibility,
    "capacity": capacity,
    "runtime": runtime,
    "serving": serving,
    "quantization": quantization,
    "quantization_official": quantization,
}


def rendered(part: str, folder: Path) -> str:
    """What README says of a part."""
    entry = results.latest(folder, part)
    if entry is None:
        is_attack = part.startswith("attack_")
        command = f"attack {part.removeprefix('attack_')}" if is_attack else f"figures.py {part}"
        return f"Not measured yet: `python bench/{command}` does it."
    return RENDERERS[part](entry)


def filled(text: str, folder: Path) -> str:
    """A text with its figures as the results files have them."""

    def place(found: re.Match[str]) -> str:
        if found[2] not in RENDERERS:
            raise SystemExit(f"figures: {found[2]}: expected one of {', '.join(RENDERERS)}")
        return f"{found[1]}{rendered(found[2], folder)}\n{found[3]}"

    return PLACE.sub(place, text)


def stale(folder: Path = results.FOLDER) -> list[Path]:
    """Files that say something else than the results."""
    return [path for path in FILES if filled(_text(path), folder) != _text(path)]


def write(folder: Path = results.FOLDER) -> None:
    """Write the figures into every file."""
    for path in stale(folder):
        path.write_text(filled(_text(path), folder), encoding="utf-8")
        print(f"figures written into {path.name}", flush=True)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only look")
    if not parser.parse_args().check:
        write()
    elif files := stale():
        names = ", ".join(path.name for path in files)
        sys.exit(f"{names}: figures differ from bench/results; run python bench/readme.py")


if __name__ == "__main__":
    main()
