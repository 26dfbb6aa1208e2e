"""Measures the project's published figures, part by part, and writes README's tables from them.

    python bench/figures.py                     # all of our own; what make bench does
    python bench/figures.py scoring load        # some parts
    python bench/figures.py reproducibility     # error rates of hat-bench compare
    python bench/figures.py peers quantization quantization_official    # beside other tools
    python bench/figures.py --list              # what there is, and how long it takes

Each part is one function here and one results file in ``bench/results``, to which a line with
machine and versions is added. A part that fails, takes too long or finds no time left is reported
and leaves its figures as they were; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))

import readme  # noqa: E402
import results  # noqa: E402
from hat_export.benchmark.latency.record import Run, read_run  # noqa: E402
from hat_export.benchmark.latency.statistics import paired_ratio  # noqa: E402

Rows = list[dict[str, Any]]
DEMO = ROOT / "demo" / "hat-tiny-emojicap"
DATA = ROOT / "demo" / "emojicap"
MODULES = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}


class PartError(Exception):
    """A part that could not be measured."""


@dataclass
class Bench:
    """Where a run works, and how long it may.

    Attributes:
        out: Folder of models, logs and reports; kept, so that models are made once.
        quick: Whether only to try everything, on few samples.
        until: When it has to be over, on ``time.monotonic``'s clock.
        made: Models that are ready.
    """

    out: Path
    quick: bool
    until: float
    made: dict[str, Path] = field(default_factory=dict)

    def run(
        self, *command: object, check: bool = True, python: Path = Path(sys.executable)
    ) -> None:
        """Run a Python program within the time left; its output goes to ``log.txt``.

        Args:
            command: A command of this project, ``-m`` and a module, or a script; then its options.
            check: Whether an exit status other than 0 is an error.
            python: Interpreter of the environment that it runs in.

        Raises:
            PartError: if it fails or is not done in time.
        """
        program, *rest = map(str, command)
        start = ["-m", MODULES[program]] if program in MODULES else [program]
        left = self.until - time.monotonic()
        shown = " ".join([Path(program).name, *rest])
        print(f"  $ {shown}", flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shown}\n")
            log.flush()
            process = subprocess.Popen([python, *start, *rest], stdout=log, stderr=log)
            try:
                status = process.wait(timeout=max(1.0, left))
            except BaseException as error:
                process.kill()
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise PartError("no time left") from None
                raise
        if check and status:
            raise PartError(f"{shown} ended with {status}; see {self.out / 'log.txt'}")

    def report(self, name: str) -> Path:
        """Where a part's JSON report goes; an old one is deleted."""
        path = self.out / f"{name}.json"
        path.unlink(missing_ok=True)
        return path

    def written(self, path: Path) -> dict[str, Any]:
        """A JSON file that a command wrote."""
        if not path.is_file():
            raise PartError(f"{path} was not written; see {self.out / 'log.txt'}")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def tiny(self) -> Path:
        """The demo model's bundle."""
        return self._model("tiny", DEMO)

    def checkpoint(self) -> Path:
        """A checkpoint of official size."""
        path = self.out / "hat-stand-in.ckpt"
        if not path.is_file():
            self.run(HERE / "official_checkpoint.py", path)
        return path

    def official(self) -> Path:
        """Its bundle in standard operators."""
        return self._model("standard", self.checkpoint(), "--require-fused")

    def packed(self) -> Path:
        """Its bundle for ONNX Runtime on a CPU."""
        return self._model("packed", self.checkpoint(), "--target", "onnxruntime")

    def _model(self, name: str, source: Path, *options: str) -> Path:
        """A bundle, exported once a run: the exporter may have changed since the last."""
        if name not in self.made:
            target = self.out / name
            self.run("hat-export", "onnx", source, target, "--overwrite", "--quiet", *options)
            self.made[name] = target
        return self.made[name]


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


def peers(bench: Bench) -> Rows:
    """The encoders beside other exporters and runtimes, and the bound of their products."""
    folder = bench.out / "peers"
    points = ("text:1x16",) if bench.quick else ("image:1", "image:8", "text:1x16", "text:32x16")
    rounds = 1 if bench.quick else 4
    bench.run(
        *(HERE / "encoders.py", bench.checkpoint(), "--out", folder),
        *("--standard", bench.official(), "--packed", bench.packed()),
        *("--rounds", rounds, "--points", *points),
    )
    content = bench.written(folder / "encoders.json")
    rows = []
    for point, found in content["points"].items():
        for title, peer in found["peers"].items():
            seconds = peer.get("seconds")
            median = statistics.median(seconds) if seconds else None
            rows.append(
                {
                    "point": point,
                    "peer": title,
                    "median_ms": median and 1e3 * median,
                    "share_of_bound": median and found["bound"]["seconds"] / median,
                    "peak_bytes": peer.get("peak_bytes"),
                    "reason": None if median else peer.get("error", "not measured"),
                }
            )
    return rows


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


def quantization(bench: Bench) -> Rows:
    """Quantized encoders of the demo model beside the stock tools: size, latency, recall."""
    few = ("--image-count", 16, "--only", "int8-dynamic") if bench.quick else ()
    return _quantization(bench, "quantization", DEMO, "--data", DATA, *few)


def quantization_official(bench: Bench) -> Rows:
    """The same at the official size: size, latency, errors of the features."""
    few = ("--only", "int8-dynamic", "--points", "text:1") if bench.quick else ()
    points = few or ("--points", "image:1", "text:1", "text:32", "--rounds", 6)
    return _quantization(
        *(bench, "quantization_official", bench.checkpoint()),
        *("--calibration", DATA, "--image-count", 16, "--official", *points),
    )


def _quantization(bench: Bench, name: str, checkpoint: Path, *options: object) -> Rows:
    folder = bench.out / name
    (folder / "quantization.json").unlink(missing_ok=True)  # what was made is kept, not measured
    bench.run(HERE / "quantization.py", checkpoint, "--out", folder, *options)
    variants = bench.written(folder / "quantization.json")["variants"]
    return [{"variant": title, **row} for title, row in variants.items()]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        measure: Gives its rows.
        minutes: About how long it takes on two cores, models included.
        usual: Whether it runs where no part is named.
    """

    measure: Callable[[Bench], Rows]
    minutes: float
    usual: bool = True


#: In the order in which they run: if the time is too short, the last ones stay as they were.
PARTS = {
    "demo": Part(demo, 3),
    "load": Part(load, 1),
    "scoring": Part(scoring, 2),
    "recall": Part(recall, 0.5),
    "search": Part(search, 1.5),
    "official": Part(official, 11),
    "full": Part(full, 9),
    "large": Part(large, 2),
    "capacity": Part(capacity, 1),
    "runtime": Part(runtime, 1.5),
    "serving": Part(serving, 1),
    # Long: so many passes that a tenth can be told on a noisy machine.
    "reproducibility": Part(reproducibility, 45, False),
    # Beside other tools, which take most of the time and are to be installed for it.
    "peers": Part(peers, 20, False),
    "quantization": Part(quantization, 8, False),
    "quantization_official": Part(quantization_official, 9, False),
}

#: Limit of a run of all usual parts.
MINUTES = 38.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    everything = "default: all but reproducibility and those beside other tools"
    parser.add_argument("parts", nargs="*", metavar="PART", help=everything)
    parser.add_argument("--list", action="store_true", help="show the parts and end")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="models and reports")
    parser.add_argument("--results", type=Path, default=results.FOLDER, help="folder of the rows")
    limit = f"no part goes on longer [{MINUTES:g}, or half as long again as the parts named take]"
    parser.add_argument("--minutes", type=float, help=limit)
    parser.add_argument("--quick", action="store_true", help="try everything on few samples")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.parts if name not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]}: expected some of {', '.join(PARTS)}")
    if arguments.list:
        for name, part in PARTS.items():
            what = (part.measure.__doc__ or "").splitlines()[0]
            print(f"{name:22} {part.minutes:4.1f} min  {what}")
        return
    if arguments.quick and arguments.results == results.FOLDER:
        arguments.results = arguments.out / "results"  # few samples are no figures to publish
    chosen = arguments.parts or [name for name, part in PARTS.items() if part.usual]
    if arguments.minutes is None:
        arguments.minutes = max(MINUTES, 1.5 * sum(PARTS[part].minutes for part in arguments.parts))
    arguments.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    failed = measure(chosen, arguments)
    if arguments.results == results.FOLDER:
        readme.write(arguments.results)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


def measure(chosen: list[str], arguments: argparse.Namespace) -> list[str]:
    """Run some parts and add their rows; the names of those that could not be measured."""
    begun = time.monotonic()
    bench = Bench(arguments.out.resolve(), arguments.quick, begun + 60 * arguments.minutes)
    failed = []
    for name in chosen:
        started = time.monotonic()
        print(f"{name} (about {PARTS[name].minutes:g} min)", flush=True)
        try:
            rows = PARTS[name].measure(bench)
        except PartError as error:
            print(f"  not measured: {error}", flush=True)
            failed.append(name)
            continue
        seconds = time.monotonic() - started
        path = results.append(arguments.results, name, rows, seconds)
        print(f"  {seconds:.0f} s, {len(rows)} rows added to {path}", flush=True)
    print(
        f"{len(chosen) - len(failed)} parts in {(time.monotonic() - begun) / 60:.1f} min",
        flush=True,
    )
    return failed


if __name__ == "__main__":
    main()
