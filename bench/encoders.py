"""HAT's encoders by hat-export and by its peers, in one run, beside the bound of their products.

Every peer lives in a process of its own, which gives each its own peak memory and start time; calls
are interleaved round by round, so that the ratios hold on a machine that is busy or throttles.
The bound is the time of an encoder's matrix products alone, each by the fastest of several
libraries at exactly that size and by its fastest call: what no implementation in float32 can leave
out.

    python bench/official_checkpoint.py runs/bench/hat-stand-in.ckpt
    python bench/encoders.py runs/bench/hat-stand-in.ckpt --out runs/encoders

A peer that can't run is a line of the table that says why; where OpenVINO isn't installed, nothing
is measured. ``bench/figures.py peers`` installs it into an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from hat_export.base.atomic import remove  # noqa: E402
from hat_export.base.machine import default_threads, environment  # noqa: E402
from hat_export.benchmark.roofline.products import image_products, text_products  # noqa: E402
from hat_export.bundle.bundle import Bundle  # noqa: E402
from hat_export.spec import ModelSpec  # noqa: E402
from peers.environment import require  # noqa: E402
from peers.points import Point  # noqa: E402

#: Title, worker, folder of its file, ending; fastest to start with last.
PEERS = {
    "torch eager": ("torch", "torch", ".pt"),
    "torch.compile": ("compile", "torch", ".pt"),
    "torch.onnx.export + ONNX Runtime": ("onnxruntime", "plain", ".onnx"),
    "the same + onnxruntime.transformers.optimizer": ("onnxruntime", "optimized", ".onnx"),
    "OpenVINO, float32": ("openvino", "openvino", ".xml"),
    "OpenVINO, float32, fixed sizes": ("openvino-static", "openvino", ".xml"),
    "OpenVINO, precision of its choice": ("openvino-default", "openvino", ".xml"),
    "hat-export, standard operators": ("onnxruntime", "standard", ".onnx"),
    "hat-export --target onnxruntime": ("hat-export", "packed", ".onnx"),
}
LIBRARIES = ("OpenBLAS", "MKL", "MLAS", "oneDNN (OpenVINO)")
#: Seconds between two peers: thread pools that wait for work spin for a while, and would take a
#: core from the peer whose turn it is.
PAUSE = 0.2
#: Seconds of a long call.
LONG = 0.5
POINTS = ("image:1", "image:8", "text:1x16", "text:32x16")


class Process:
    """A worker and the conversation with it."""

    def __init__(self, name: str, model: Path | None, threads: int, log: Path) -> None:
        command = [sys.executable, "-m", "peers.worker", name, "--threads", str(threads)]
        if model is not None:
            command += ["--model", str(model)]
        # Threads that wait must not take the cores from the peer whose turn it is.
        variables = os.environ | {
            "OMP_WAIT_POLICY": "passive",
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
        }
        self._log = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            command,
            cwd=HERE,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer; an ``error`` where the process is gone."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"error": f"the process ended with {self._process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._log.close()


def prepare(checkpoint: Path, folder: Path, ready: dict[str, Path | None]) -> None:
    """Make what is missing of the peers' files; a bundle that is ready is taken as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint").write_text(str(checkpoint.resolve()), encoding="utf-8")
    for name, options in {"standard": (), "packed": ("--target", "onnxruntime")}.items():
        bundle = ready[name]
        if bundle is not None:
            remove(folder / name)
            (folder / name).symlink_to(bundle.resolve())
        elif not (folder / name).is_dir():
            command = ["-m", "hat_export.cli.export", "onnx", checkpoint, folder / name]
            flags = ["--require-fused", "--quiet", *options]
            subprocess.run([sys.executable, *map(str, command), *flags], check=True)
    spec = Bundle.read(folder / "standard", verify=False).manifest.spec
    (folder / "spec.json").write_text(json.dumps(spec.to_json()), encoding="utf-8")
    endings = {"torch": ".pt", "plain": ".onnx", "optimized": ".onnx", "openvino": ".xml"}
    for encoder in ("image", "text"):
        for kind, ending in endings.items():
            if not (folder / kind / f"{encoder}{ending}").is_file():
                print(f"making {kind}/{encoder}{ending}", flush=True)
                program(folder, kind, encoder)


def program(folder: Path, kind: str, what: str) -> None:
    """Run peers/prepare.py; a peer whose file can't be made is reported when it is to be loaded."""
    with (folder / "prepare.log").open("a", encoding="utf-8") as log:
        subprocess.run(
            [sys.executable, str(HERE / "peers" / "prepare.py"), kind, what, str(folder)],
            env=os.environ | {"PYTHONPATH": str(HERE)},
            stdout=log,
            stderr=log,
            check=False,
        )


def reference(folder: Path, point: Point) -> Path:
    """PyTorch's features at a point."""
    path = folder / "reference" / f"{str(point).replace(':', '-')}.npz"
    if not path.is_file():
        program(folder, "reference", str(point))
    if not path.is_file():
        sys.exit(f"error: PyTorch's features at {point} were not made; see {folder}/prepare.log")
    return path


def measure(folder: Path, point: Point, threads: int, rounds: int) -> dict[str, Any]:
    """Every peer at one point, interleaved."""
    expected = str(reference(folder, point))
    found: dict[str, dict[str, Any]] = {}
    processes: dict[str, Process] = {}
    effort: dict[str, tuple[int, int]] = {}
    for title, (worker, kind, ending) in PEERS.items():
        file = folder / kind / f"{point.encoder}{ending}"
        process = Process(worker, file, threads, folder / "workers.log")
        answer = process.ask("prepare", reference=expected)
        found[title] = answer
        if "error" in answer:
            process.close()
            continue
        weights = [file, file.with_suffix(".bin"), file.with_name(f"{file.name}.data")]
        answer["file_bytes"] = sum(path.stat().st_size for path in weights if path.is_file())
        answer["seconds"] = []
        processes[title] = process
        first = process.ask("time", calls=1, warm_up=1).get("seconds", [0.0])
        # A long call needs no second one to come up to speed again.
        effort[title] = (2, 1) if first[0] > LONG else (3, 2)
    for _ in range(rounds):
        for title, process in processes.items():
            time.sleep(PAUSE)
            calls, warm_up = effort[title]
            answer = process.ask("time", calls=calls, warm_up=warm_up)
            if "error" in answer:
                found[title]["error"] = answer["error"]
                continue
            found[title]["seconds"] += answer["seconds"]
            found[title]["peak_bytes"] = answer["peak_bytes"]
    for title, process in processes.items():
        found[title] |= process.ask("facts")
        process.close()
    return found


def bound(spec: ModelSpec, point: Point, threads: int, folder: Path) -> dict[str, Any]:
    """Seconds of the point's products, each by the library that is fastest at it."""
    if point.encoder == "image":
        wanted = image_products(spec, point.batch)
    else:
        wanted = text_products(spec, point.batch, point.words)
    best: dict[Any, tuple[float, str]] = {}
    for library in LIBRARIES:
        process = Process(library, None, threads, folder / "workers.log")
        for product in wanted:
            sizes = (product.batch, product.rows, product.inner, product.columns)
            names = ("batch", "rows", "inner", "columns")
            answer = process.ask("product", **dict(zip(names, sizes, strict=True)))
            if "error" in answer:
                continue
            calls = 8 if product.flops > 1e9 else 20
            timed = process.ask("time", calls=calls, warm_up=2)
            if "error" not in timed:
                seconds = min(timed["seconds"])  # a bound: what it takes undisturbed
                best[product] = min(best.get(product, (seconds, library)), (seconds, library))
        process.close()
    return {
        "seconds": sum(best[product][0] * count for product, count in wanted.items()),
        "flops": sum(product.flops * count for product, count in wanted.items()),
        "products": [
            {"size": str(p), "count": n, "seconds": best[p][0], "library": best[p][1]}
            for p, n in sorted(wanted.items())
        ],
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a table per point."""
    lines = []
    for point, found in results["points"].items():
        limit = found["bound"]["seconds"]
        lines += [
            f"## {point}",
            "",
            "| | median ms | of the bound | start s | peak MB | file MB | nodes | difference |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for title, peer in found["peers"].items():
            if not peer.get("seconds"):
                lines.append(f"| {title} | not measured: {peer.get('error')} | | | | | | |")
                continue
            median = statistics.median(peer["seconds"])
            precision = peer.get("precision", "float32")
            cells = (
                title if precision == "float32" else f"{title} ({precision})",
                f"{1e3 * median:.1f}",
                f"{limit / median:.0%}",
                f"{peer['start_seconds']:.1f}",
                f"{peer['peak_bytes'] / 1e6:.0f}",
                f"{peer['file_bytes'] / 1e6:.0f}",
                str(peer.get("nodes", "")),
                f"{peer['largest_difference']:.1e}",
            )
            lines.append(f"| {' | '.join(cells)} |")
        lines += [f"| *bound: the products alone* | {1e3 * limit:.1f} | 100% | | | | | |", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of files and results")
    for name in ("standard", "packed"):
        parser.add_argument(f"--{name}", type=Path, help="this bundle, if it is there already")
    parser.add_argument("--points", nargs="+", default=POINTS, help="image:N or text:NxWORDS")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    require()
    folder: Path = arguments.out.resolve()  # workers run elsewhere
    ready = {"standard": arguments.standard, "packed": arguments.packed}
    prepare(arguments.checkpoint, folder, ready)
    spec = Bundle.read(folder / "standard", verify=False).manifest.spec
    results: dict[str, Any] = {
        "threads": arguments.threads,
        "environment": environment(),
        "points": {},
    }
    for text in arguments.points:
        point = Point.parse(text)
        print(f"measuring {point}", flush=True)
        results["points"][str(point)] = {
            "peers": measure(folder, point, arguments.threads, arguments.rounds),
            "bound": bound(spec, point, arguments.threads, folder),
        }
        (folder / "encoders.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        (folder / "encoders.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
