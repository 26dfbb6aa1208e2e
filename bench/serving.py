"""Throughput of a served bundle under Triton Inference Server, measured by perf_analyzer.

Two servers: one puts concurrent requests together (dynamic batching), one takes them one by one.
Needs what `make test-serve` installs, and perf_analyzer on the path or by --perf-analyzer, which
is linked to libb64 (on Debian: apt-get install libb64-0d) and to CUDA's runtime (--libraries).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hat_export.base.machine import environment
from hat_export.bundle.bundle import Bundle
from hat_export.report.report import Report, Table, write_report
from hat_export.runtime.self_test import noise_captions
from hat_export.serving.local_server import LocalServer
from hat_export.serving.names import IMAGE, TEXT
from hat_export.serving.repository import ServingOptions, write_repository

WORDS = 16


@dataclass(frozen=True)
class Measured:
    model: str
    batching: bool
    concurrency: int
    rate: float  # requests a second
    p50: float  # ms
    p99: float  # ms


def measure(
    analyzer: Path,
    libraries: Path | None,
    server: LocalServer,
    model: str,
    batching: bool,
    clients: Sequence[int],
    seconds: float,
    data: Path,
) -> list[Measured]:
    found = (str(libraries or ""), os.environ.get("LD_LIBRARY_PATH", ""))
    variables = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, found))}
    results = []
    for concurrency in clients:
        with tempfile.NamedTemporaryFile(suffix=".csv") as out:
            command = [str(analyzer), "-m", model, "-u", server.grpc, "-i", "grpc", "-b", "1"]
            command += ["--concurrency-range", str(concurrency), "-f", out.name]
            command += ["-p", str(int(1000 * seconds)), "-s", "50", "-r", "10"]
            if model == TEXT:
                command += ["--input-data", str(data)]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=variables
            )
            rows = list(csv.DictReader(Path(out.name).read_text().splitlines()))
        if not rows:
            raise SystemExit(
                f"perf_analyzer gave nothing: {done.stdout[-500:]}{done.stderr[-500:]}"
            )
        row = rows[0]
        rate, p50, p99 = (
            float(row[name]) for name in ("Inferences/Second", "p50 latency", "p99 latency")
        )
        results.append(Measured(model, batching, concurrency, rate, p50 / 1000, p99 / 1000))
        print(results[-1], flush=True)
    return results


def report(measured: list[Measured]) -> Report:
    tables = []
    for model in (IMAGE, TEXT):
        rows = []
        for concurrency in sorted({one.concurrency for one in measured}):
            single, batched = (
                next(
                    one
                    for one in measured
                    if (one.model, one.batching, one.concurrency) == (model, batching, concurrency)
                )
                for batching in (False, True)
            )
            cells = [f"{v:.1f}" for one in (single, batched) for v in (one.rate, one.p50, one.p99)]
            rows.append((str(concurrency), *cells, f"{batched.rate / single.rate:.2f}"))
        columns = (
            "clients",
            *("one by one /s", "p50 ms", "p99 ms"),
            *("batched /s", "p50 ms", "p99 ms"),
            "gain",
        )
        tables.append(Table(model, columns, tuple(rows)))
    data = {"measured": [vars(one) for one in measured], "environment": environment()}
    return Report("serving", "Throughput of the server", None, (), tuple(tables), data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--perf-analyzer", type=Path, default=Path("perf_analyzer"))
    parser.add_argument("--libraries", type=Path, help="Folder of what perf_analyzer is linked to.")
    parser.add_argument("--clients", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = Bundle.read(arguments.bundle)
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        ids, mask = noise_captions(bundle.manifest.spec, 1, WORDS, seed=1)
        data = Path(folder) / "text.json"
        tensors = {
            name: {"content": array[0].tolist(), "shape": [WORDS]}
            for name, array in (("input_ids", ids), ("attention_mask", mask))
        }
        data.write_text(json.dumps({"data": [tensors]}))
        for batching in (False, True):
            repository = Path(folder) / f"repository-{batching}"
            options = ServingOptions(
                backend="python",
                max_batch=32 if batching else 1,
                threads=arguments.threads,
            )
            write_repository(bundle, repository, options)
            with LocalServer(repository) as server:
                for model in (IMAGE, TEXT):
                    measured += measure(
                        *(arguments.perf_analyzer, arguments.libraries, server, model, batching),
                        *(arguments.clients, arguments.seconds, data),
                    )
    result = report(measured)
    write_report(result, arguments.out.with_suffix(".json"))
    write_report(result, arguments.out.with_suffix(".md"))
    print(result.to_markdown())


if __name__ == "__main__":
    main()
