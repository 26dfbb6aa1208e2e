"""Quantized encoders beside the stock tools: size, latency, recall or feature error, in one run.

``bench/figures.py quantization quantization_official`` runs it for the tables of the docs; alone:

    python bench/quantization.py demo/hat-tiny-emojicap --data demo/emojicap --out runs/quantization
    python bench/quantization.py runs/bench/hat-stand-in.ckpt --calibration demo/emojicap \
        --official --image-count 16 --out runs/quantization-official

Peers: onnxruntime.quantization's quantize_dynamic and quantize_static on the standard graphs (with
their preprocessing where it works), and NNCF on OpenVINO, without which nothing is measured;
``bench/figures.py`` installs both into an environment of its own. Everything is
calibrated on the same images and captions (split val), and timed in turn, call by call, by the same
threads. Recall is of the split test; without ``--data`` the relative error of features stands for
it. Each variant is made in a process of its own, whose peak memory is a column. Everything goes to
``quantization.json`` in the folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.machine import cpu_features, default_threads, environment, peak_memory
from hat_export.base.timer import Timer, own_median
from hat_export.bundle.bundle import TOKENIZER, Bundle, list_files, read_manifest, write_manifest
from hat_export.data.dataset import CaptionDataset
from hat_export.data.karpathy import read_karpathy
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.export.calibration import dataset_feeds
from hat_export.parity.comparison import compare_scores
from hat_export.parity.statistics import deltas
from hat_export.parity.top_k_overlap import top_kept
from hat_export.quantize.bundles import ENCODERS
from hat_export.quantize.search import encoder_bytes
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
from hat_export.runtime.evaluate import score_dataset
from hat_export.runtime.self_test import noise_captions, noise_pixels
from peers.environment import require

#: Seconds before a call: idle thread pools spin for a while and would take cores from the next.
PAUSE = 0.1
OURS = "hat-export"
IMAGE, TEXT = "image", "text"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        title: What it is called.
        options: Of ``hat-export quantize``; None for a peer.
        peer: Makes the graph of an encoder: (fp32 graph, result, feeds); None for our own.
        packed: Whether it starts from ``--target onnxruntime``.
        official: Whether it matters at the official size.
    """

    title: str
    options: tuple[str, ...] | None = None
    peer: str | None = None
    packed: bool = True
    official: bool = False

    @property
    def folder(self) -> str:
        """Name of its bundle."""
        return "".join(char if char.isalnum() else "-" for char in self.title).strip("-")


VARIANTS = (
    Variant("float32, standard operators", None, None, False, True),
    Variant("float32, --target onnxruntime", official=True),
    Variant("hat-export int8-dynamic", ("--mode", "int8-dynamic"), official=True),
    Variant("hat-export int8-dynamic --smooth", ("--mode", "int8-dynamic", "--smooth")),
    Variant("hat-export int8-static minmax", ("--mode", "int8-static"), official=True),
    Variant(
        "hat-export int8-static percentile",
        ("--mode", "int8-static", "--method", "percentile"),
    ),
    Variant("hat-export int8-static entropy", ("--mode", "int8-static", "--method", "entropy")),
    Variant("hat-export int8-static mse", ("--mode", "int8-static", "--method", "mse")),
    Variant(
        "hat-export int8-static mse --smooth",
        ("--mode", "int8-static", "--method", "mse", "--smooth"),
    ),
    Variant("hat-export int8-weights", ("--mode", "int8-weights"), official=True),
    Variant("hat-export int4-weights", ("--mode", "int4-weights"), official=True),
    Variant(
        "hat-export fp8 (Q/DQ, imitated on this CPU)",
        ("--mode", "fp8", "--target", "tensorrt"),
        None,
        False,
    ),
    Variant("onnxruntime quantize_dynamic", None, "dynamic", False, True),
    Variant("onnxruntime quantize_dynamic, per channel", None, "dynamic-channel", False, True),
    Variant("onnxruntime quantize_static, minmax", None, "static", False),
    Variant("onnxruntime quantize_static, per channel", None, "static-channel", False, True),
    Variant("NNCF + OpenVINO int8", None, "nncf", False, True),
)


def command(*arguments: object) -> None:
    """One of hat-export's commands, as a user would type it."""
    shown = [str(argument) for argument in arguments]
    print("$ hat-export", *shown, flush=True)
    subprocess.run([sys.executable, "-m", "hat_export.cli.export", *shown], check=True)


def make(arguments: argparse.Namespace, variant: Variant) -> None:
    """Make one variant's bundle; runs in a process of its own."""
    folder: Path = arguments.out
    source = folder / ("packed" if variant.packed else "standard")
    target = folder / variant.folder
    data = arguments.calibration or arguments.data
    started = time.perf_counter()
    if variant.options is not None:
        from hat_export.cli.export import app

        line = ["quantize", source, target, *variant.options, "--overwrite", "--no-preflight"]
        line += ["--calibration", data, "--calibration-image-count", arguments.image_count]
        line += ["--threads", arguments.threads, "--quiet"]
        app([str(part) for part in line], standalone_mode=False)
    elif variant.peer is not None:
        bundle = Bundle.read(source, verify=False)
        dataset = read_karpathy(data, "val").limit(arguments.image_count)
        tokenizer = CaptionTokenizer.from_file(
            bundle.file(TOKENIZER), bundle.manifest.spec.max_words
        )
        target.mkdir(exist_ok=True)
        feeds = dataset_feeds(dataset, bundle.manifest.spec, tokenizer)
        for encoder in ENCODERS:
            PEERS[variant.peer](
                bundle.graph_path(encoder), target / f"{encoder}.onnx", iter(feeds[encoder])
            )
        for name in bundle.manifest.files:
            if not (target / name).exists() and not name.startswith(ENCODERS):
                (target / name).write_bytes((source / name).read_bytes())
        files = dict(bundle.manifest.files) | list_files(target)
        write_manifest(target, replace(bundle.manifest, files=files))
    facts = {"seconds": time.perf_counter() - started, "peak_bytes": peak_memory()}
    (folder / f"{variant.folder}.json").write_text(json.dumps(facts), encoding="utf-8")


def _dynamic(channel: bool) -> Callable[[Path, Path, Iterator[Any]], None]:
    def run(source: Path, target: Path, feeds: Iterator[Any]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # By default it turns the standard Attention into its own of another signature, and the
        # graph doesn't load: it gets the operators that it can do.
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "Gather"],
            per_channel=channel,
            weight_type=QuantType.QInt8,
        )

    return run


def _static(channel: bool) -> Callable[[Path, Path, Iterator[Any]], None]:
    def run(source: Path, target: Path, feeds: Iterator[Any]) -> None:
        from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

        class Reader(CalibrationDataReader):  # type: ignore[misc]
            def get_next(self) -> Any:
                feed = next(feeds, None)
                return dict(feed) if feed is not None else None

        quantize_static(
            source,
            target,
            Reader(),
            per_channel=channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return run


def _nncf(source: Path, target: Path, feeds: Iterator[Any]) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(source)
    items = [dict(feed) for feed in feeds]
    made = nncf.quantize(
        model,
        nncf.Dataset(items),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(items),
    )
    openvino.save_model(made, target.with_suffix(".xml"), compress_to_fp16=False)


PEERS: dict[str, Callable[[Path, Path, Iterator[Any]], None]] = {
    "dynamic": _dynamic(False),
    "dynamic-channel": _dynamic(True),
    "static": _static(False),
    "static-channel": _static(True),
    "nncf": _nncf,
}


class OpenVinoSession(OnnxRuntimeSession):
    """NNCF's graphs on OpenVINO, with the tokenizer and the score of a bundle."""

    def _load(self, name: str) -> Any:
        import openvino

        options = {"INFERENCE_NUM_THREADS": self.threads, "INFERENCE_PRECISION_HINT": "f32"}
        path = self._bundle.path / f"{name}.xml"
        compiled = openvino.Core().compile_model(path, "CPU", options)

        class Graph:
            def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
                found = compiled(feed)
                return [np.array(found[output]) for output in outputs]

        return Graph()


def open_variant(folder: Path, variant: Variant, threads: int) -> OnnxRuntimeSession:
    """A session on a variant's bundle."""
    if variant.options is None and variant.peer is None:
        path = folder / ("packed" if variant.packed else "standard")
    else:
        path = folder / variant.folder
    if variant.peer == "nncf":  # its graphs aren't ONNX, so that it is no whole bundle
        return OpenVinoSession(Bundle(path, read_manifest(path)), threads)
    return OnnxRuntimeSession(Bundle.read(path, verify=False), threads)


def size_of(session: OnnxRuntimeSession) -> int:
    """Bytes of both encoders."""
    bundle = session._bundle
    xml = [bundle.path / f"{encoder}.bin" for encoder in ENCODERS]
    if all(path.exists() for path in xml):
        return sum(path.stat().st_size + path.with_suffix(".xml").stat().st_size for path in xml)
    if bundle.manifest.quantization is None and (bundle.path / "image.onnx").exists():
        return sum((bundle.path / f"{encoder}.onnx").stat().st_size for encoder in ENCODERS)
    return encoder_bytes(bundle)


def time_in_turn(
    sessions: dict[str, OnnxRuntimeSession], points: list[str], rounds: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds at each point, call by call in turn."""
    spec = next(iter(sessions.values())).spec
    words = min(16, spec.max_words)
    found: dict[str, dict[str, float]] = {title: {} for title in sessions}
    for point, _, count in (text.partition(":") for text in points):
        batch = int(count)
        if point == IMAGE:
            pixels = noise_pixels(spec, batch, seed=batch)
            calls = {t: lambda s=s, p=pixels: s._encode_images(p) for t, s in sessions.items()}
        else:
            ids, _ = noise_captions(spec, batch, words, seed=batch)
            mask = np.ones_like(ids)
            calls = {
                t: lambda s=s, i=ids, m=mask: s._encode_texts(i, m) for t, s in sessions.items()
            }
        # Two calls a turn: after another's turn the first brings its weights back into the caches.
        samples = Timer(settle_seconds=PAUSE).in_turn(calls, rounds, wake=True)
        for title, times in samples.items():
            name = f"{point} {batch}" if point == IMAGE else f"{point} {batch} x {words}"
            found[title][name] = 1e3 * own_median(times)
    return found


def feature_errors(
    reference: OnnxRuntimeSession, session: OnnxRuntimeSession, dataset: CaptionDataset
) -> dict[str, float]:
    """Relative errors (root mean square) of real images' and captions' features, and scores."""
    pixels = reference.preprocess(list(dataset.images()))
    sides = []
    for one in (reference, session):
        images = one.encode_images(pixels)
        texts = one.encode_texts(dataset.captions)
        sides.append((images, texts, one.score(images, texts)))
    (images, texts, scores), (images_after, texts_after, scores_after) = sides
    real = texts.mask.astype(bool)

    def worst(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return max(float(np.linalg.norm(b - a) / np.linalg.norm(a)) for a, b in pairs)

    return {
        "images": worst(list(zip(images.levels, images_after.levels, strict=True))),
        "texts": worst(
            [(a[real], b[real]) for a, b in zip(texts.levels, texts_after.levels, strict=True)]
        ),
        "scores": float(np.std(scores_after - scores) / np.std(scores)),
    }


def chosen(arguments: argparse.Namespace) -> list[Variant]:
    """The variants asked for, and always float32."""
    words = arguments.only or [""]
    return [
        variant
        for variant in VARIANTS
        if variant.title.startswith("float")
        or (
            any(word in variant.title for word in words)
            and (variant.official or not arguments.official)
        )
    ]


def prepare(arguments: argparse.Namespace) -> None:
    """The float32 bundles, and every variant in a process of its own."""
    folder: Path = arguments.out
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in {"standard": (), "packed": ("--target", "onnxruntime")}.items():
        if not (folder / name).exists():
            command("onnx", arguments.checkpoint, folder / name, "--quiet", *options)
    for variant in chosen(arguments):
        made = variant.options is not None or variant.peer is not None
        if made and not (folder / f"{variant.folder}.json").exists():
            print(f"making {variant.title}", flush=True)
            line = [sys.executable, __file__, *sys.argv[1:], "--make", variant.title]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                lines = done.stderr.strip().splitlines() or ["no message"]
                (folder / f"{variant.folder}.error").write_text(lines[-1], encoding="utf-8")
                print(f"  failed: {lines[-1]}", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Everything that the table says."""
    folder: Path = arguments.out
    path = folder / "quantization.json"
    before = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.exists() else {}
    results: dict[str, Any] = {
        "threads": arguments.threads,
        "cpu_features": sorted(cpu_features()),
        "environment": environment(),
        "variants": {v.title: before[v.title] for v in VARIANTS if v.title in before},
    }
    sessions: dict[str, OnnxRuntimeSession] = {}
    for variant in chosen(arguments):
        row: dict[str, Any] = before.get(variant.title, {})
        row.pop("error", None)
        try:
            session = open_variant(folder, variant, arguments.threads)
            row["bytes"] = size_of(session)
            sessions[variant.title] = session
        except Exception as error:  # a peer's failure is a line of the table
            failure = folder / f"{variant.folder}.error"
            row["error"] = failure.read_text() if failure.exists() else str(error).splitlines()[0]
        facts = folder / f"{variant.folder}.json"
        if facts.exists():
            row["made"] = json.loads(facts.read_text())
        results["variants"][variant.title] = row
    if "timing" in arguments.parts:
        for title, times in time_in_turn(sessions, arguments.points, arguments.rounds).items():
            results["variants"][title]["ms"] = times
    reference = next(iter(sessions.values()))
    sample = read_karpathy(arguments.calibration or arguments.data, "test").limit(16).take(1)
    exact = None
    for title, session in sessions.items():
        row = results["variants"][title]
        if "quality" not in arguments.parts:
            continue
        row["errors"] = feature_errors(reference, session, sample)
        if arguments.data:
            dataset = read_karpathy(arguments.data, "test")
            scores = score_dataset(session, dataset)
            exact = scores if exact is None else exact
            found = deltas(compare_scores(exact, scores, dataset.owners))["rsum"]
            row |= {
                "rsum": found.candidate,
                "lost": found.reference - found.candidate,
                "interval": [found.low, found.high],
            }
            kept = top_kept(exact, scores, dataset.owners)
            row["kept"] = kept.to_json() if kept else None
        print(title, row, flush=True)
        path.write_text(json.dumps(results, indent=1), encoding="utf-8")
    path.write_text(json.dumps(results, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of files and results")
    parser.add_argument("--data", type=Path, help="dataset whose split test recall is measured on")
    parser.add_argument("--calibration", type=Path, help="dataset; default: that of --data")
    parser.add_argument("--image-count", type=int, default=256, help="images to calibrate on")
    parser.add_argument("--threads", type=int, default=default_threads())
    points = ["image:1", "image:8", "text:1", "text:32"]
    parser.add_argument("--points", nargs="+", default=points, help="image:BATCH or text:BATCH")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", help="variants whose title has one of these words")
    parser.add_argument(
        "--official", action="store_true", help="only variants that matter at the official size"
    )
    parts = ("prepare", "quality", "timing")
    parser.add_argument(
        "--parts", nargs="+", choices=parts, default=parts, help="what to do now; results add up"
    )
    parser.add_argument("--make", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data is None and arguments.calibration is None:
        parser.error("--calibration is needed where there is no --data")
    if any(variant.peer == "nncf" for variant in chosen(arguments)):
        require()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.make:
        try:
            make(arguments, next(v for v in VARIANTS if v.title == arguments.make))
        except Exception as error:
            traceback.print_exc()
            print(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", file=sys.stderr)
            sys.exit(1)
        return
    if "prepare" in arguments.parts:
        prepare(arguments)
    if len({"quality", "timing"} & set(arguments.parts)):
        measure(arguments)


if __name__ == "__main__":
    main()
