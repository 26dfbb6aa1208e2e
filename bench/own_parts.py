"""Parts of the published figures that measure the project itself."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from hat_export.benchmark.latency.record import Run, read_run
from hat_export.benchmark.latency.statistics import paired_ratio
from workbench import DATA, DEMO, HERE, ROOT, Bench, PartError, Rows


def _latency(bench: Bench, name: str, targets: list[Path], *options: object) -> Rows:
    path = bench.report(name)
    reports = [item for end in (".json", ".html") for item in ("--report", path.with_suffix(end))]
    bench.run("hat-bench", "latency", *targets, "--quiet", *options, *reports)
    return _latency_rows(read_run(path))


def _latency_rows(run: Run) -> Rows:
    """A row for each case: median, speed against the first target, share of the bound."""
    limits = {
        (c["target"], c["component"], c["size"], c["threads"]): c["seconds"]
        for c in run.bounds.get("cases", [])
    }
    first: dict[Any, Any] = {}
    rows = []
    for timing in run.timings:
        base = first.setdefault(timing.key, timing)
        limit = limits.get((timing.target, *timing.key))
        rows.append(
            {
                "target": timing.target,
                "component": timing.component,
                "size": timing.size,
                "threads": timing.threads,
                "p50_ms": 1e3 * timing.median,
                "speed": paired_ratio(base.own_rounds, timing.own_rounds).to_json(),
                "share_of_bound": None if limit is None else limit / timing.median,
                "waited": timing.waited,
                "stable": timing.stable,
            }
        )
    for target in run.targets:
        starts = [start["first_result"] for start in target["starts"]]
        rows.append(
            {
                "target": target["name"],
                "component": "process",
                "bytes": target["bytes"],
                "cold_start_seconds": statistics.median(starts) if starts else None,
                "peak_bytes": target["peak_bytes"],
            }
        )
    return rows


def official(bench: Bench) -> Rows:
    """PyTorch and both bundles at official size."""
    effort = (0.0, 1) if bench.quick else (4.0, 2)
    return _latency(
        bench,
        "official",
        [bench.checkpoint(), bench.official(), bench.packed()],
        *("--seconds", effort[0], "--calls", 4, "--passes", effort[1], "--cold-starts", 1),
    )


def demo(bench: Bench) -> Rows:
    """PyTorch and the bundle of the demo model."""
    effort = (0.0, 1) if bench.quick else (2.0, 3)
    return _latency(
        bench,
        "demo",
        [DEMO, bench.tiny()],
        *("--seconds", effort[0], "--passes", effort[1], "--calls", 6),
    )


def scoring(bench: Bench) -> Rows:
    """The scoring kernel at Flickr30K's sizes beside a bare product and the published formula."""
    path = bench.report("scoring")
    sizes = ("--rounds", 2) if bench.quick else ("--image-count", 64, "--formula-caption-count", 4)
    bench.run("hat-bench", "scoring", *sizes, "--report", path, "--quiet")
    rows: Rows = bench.written(path)["data"]["levels"]
    return rows


def recall(bench: Bench) -> Rows:
    """Recall of the demo model: PyTorch and the bundle."""
    path = bench.report("parity")
    few = ("--limit", 50) if bench.quick else ()
    bench.run(
        *("hat-bench", "parity", DEMO, bench.tiny(), "--data", DATA, *few),
        *("--report", path, "--report", path.with_suffix(".html"), "--quiet"),
    )
    data = bench.written(path)["data"]
    changed = data["changed"]
    return [
        {
            "target": data[side]["name"],
            **{
                f"{way}_{at}": data[side][way][at]
                for way in ("i2t", "t2i")
                for at in ("r1", "r5", "r10")
            },
            "rsum": data[side]["rsum"],
            "images": data["images"],
            "captions": data["captions"],
            "changed_ranks": len(changed),
        }
        for side in ("reference", "candidate")
    ]


def search(bench: Bench) -> Rows:
    """Two-stage search on the demo data."""
    path = bench.report("search")
    few = ("--queries", 5) if bench.quick else ()
    bench.run(
        *("hat-bench", "search", bench.tiny(), "--data", DATA, *few),
        *("--report", path, "--quiet"),
    )
    data = bench.written(path)["data"]
    return [{name: data[name] for name in data if name != "environment"}]


def full(bench: Bench) -> Rows:
    """A complete score of 1,000 x 5,000 at official size."""
    return _search_part(bench, "full")


def large(bench: Bench) -> Rows:
    """One caption against up to 100,000 images of the demo model's size."""
    return _search_part(bench, "large")


def _search_part(bench: Bench, part: str) -> Rows:
    if bench.quick:
        raise PartError("has no quick form")
    bench.run(HERE / "search.py", part, "--out", bench.out)
    rows: Rows = bench.written(bench.out / f"search_{part}.json")["rows"]
    return rows


def load(bench: Bench) -> Rows:
    """LoadGen's four scenarios on the demo model; its own files stay in ``out/load``."""
    path = bench.report("load")
    seconds = 0.5 if bench.quick else 5
    works = ("--work", "images", "--work", "search")
    bench.run(
        *("hat-bench", "load", bench.tiny(), *works, "--seconds", seconds),
        *("--logs", bench.out / "load", "--report", path, "--quiet"),
        check=False,  # a scenario that LoadGen calls invalid is a result, and shown as that
    )
    kept = ("work", "scenario", "statistic", "unit", "result", "valid", "not_met", "settings")
    outcomes = bench.written(path)["data"]["outcomes"]
    return [{name: outcome[name] for name in kept} for outcome in outcomes]


def reproducibility(bench: Bench) -> Rows:
    """Error rates of hat-bench compare over repetitions of the same and of a slowed target."""
    folder = bench.out / "reproducibility"
    count, passes = (2, 2) if bench.quick else (20, 25)
    bench.run(
        *(HERE / "reproducibility.py", bench.tiny(), "--out", folder, "--repetitions", count),
        *("--passes", passes, "--seconds", 0.04 * passes),
    )
    content = bench.written(folder / "reproducibility.json")
    facts = ("machine", "versions", "hardware")
    return [{key: value for key, value in content.items() if key not in facts}]


def capacity(bench: Bench) -> Rows:
    """What one core does at official size; docs/capacity.md extrapolates it."""
    path = bench.report("capacity")
    rounds = 1 if bench.quick else 7
    bench.run(HERE / "capacity.py", bench.packed(), "--rounds", rounds, "--out", path)
    return [bench.written(path)]


def runtime(bench: Bench) -> Rows:
    """Size and cold start of the environment without torch, which is made for it."""
    path = bench.report("runtime")
    environment = bench.out / "runtime-environment"
    python = environment / "bin" / "python"
    bench.run("-m", "venv", "--clear", environment)
    bench.run("-m", "pip", "install", "--quiet", f"{ROOT}[cpu]", python=python)
    starts = 1 if bench.quick else 7
    bench.run(
        *(HERE / "runtime.py", bench.tiny(), "--starts", starts, "--out", path), python=python
    )
    return [bench.written(path)]


def serving(bench: Bench) -> Rows:
    """Throughput of the demo model under Triton Inference Server."""
    python = ROOT / ".venv-serve" / "bin" / "python"
    if not python.exists():
        raise PartError("there is no .venv-serve; make test-serve creates it")
    path = bench.report("serving")
    client = bench.out / "perf-analyzer"
    analyzer = client / "bin" / "perf_analyzer"
    libraries = client / "nvidia" / "cuda_runtime" / "lib"
    if not analyzer.exists():  # the last tritonclient whose wheel has it, and what it is linked to
        bench.run(
            *("-m", "pip", "install", "--quiet", "--no-deps", "--target", client),
            *("tritonclient==2.37.0.9383150", "nvidia-cuda-runtime-cu12"),
        )
    clients = (1, 4) if bench.quick else (1, 4, 16)
    bench.run(
        *(HERE / "serving.py", bench.tiny(), "--perf-analyzer", analyzer, "--libraries", libraries),
        *("--clients", *clients, "--seconds", 1, "--out", path),
        python=python,
    )
    names = {"hat_image": "images", "hat_text": "captions"}
    data = bench.written(path)["data"]
    return [
        {
            "model": names[row["model"]],
            "batching": row["batching"],
            "clients": row["concurrency"],
            "per_second": row["rate"],
            "p50_ms": row["p50"],
            "p99_ms": row["p99"],
            "versions": data["environment"]["versions"],
        }
        for row in data["measured"]
    ]
