"""What serving takes: load, size and start of the runtime, a server, many machines."""

from __future__ import annotations

from rendering.markdown import Entry, duration, machine, rounded, table, volume

#: What a core costs an hour, and a GB on disk a month, in USD: assumed.
CORE_HOUR, GB_MONTH = 0.04, 0.05
#: Candidates that two-stage search scores exactly, and the images of a shard.
CANDIDATES, SHARD = 1000, 1_000_000


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
