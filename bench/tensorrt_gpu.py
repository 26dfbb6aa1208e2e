"""The encoders on an NVIDIA GPU: TensorRT beside PyTorch in fp16 and ONNX Runtime.

    python bench/tensorrt_gpu.py hat.ckpt --out runs/tensorrt

Builds engines for the GPU at hand, then calls every target in turn within one run; PyTorch is eager
and compiled. A target is timed only if its features agree with the others'. What is timed goes from
arrays in the host's memory to arrays in the host's memory; for TensorRT the copies and the compute
are shown apart too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.machine import environment
from hat_export.base.progress import progress_on_stderr
from hat_export.base.timer import Timer
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.engines import Range
from hat_export.bundle.precision import PRECISIONS
from hat_export.errors import HatError
from hat_export.model.checkpoint import load_hat
from hat_export.report.report import Report, Table, write_report
from hat_export.runtime.backends.engine_runner import PARTS
from hat_export.runtime.backends.tensorrt_backend import TensorRtSession
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.trt_library import find_gpu, load_library
from hat_export.tensorrt.engine_export import export_engines
from hat_export.tensorrt.request import ProfileRequest, choose_targets

Run = Callable[[], Any]
WORDS = 16


def torch_targets(checkpoint: Path, pixels: np.ndarray, ids: np.ndarray) -> dict[str, Run]:
    """The reference in fp16 on the GPU, eager and compiled, from host arrays to host arrays."""
    import torch

    model = load_hat(checkpoint, None, None).model.half().cuda()
    mask = np.ones_like(ids)
    compiled = {
        "images": torch.compile(model.encode_images, dynamic=False),
        "texts": torch.compile(model.encode_texts, dynamic=False),
    }

    def images(encode: Callable[..., Any]) -> list[np.ndarray]:
        with torch.inference_mode():
            levels = encode(torch.from_numpy(pixels).cuda().half())
            return [level.float().cpu().numpy() for level in levels]

    def texts(encode: Callable[..., Any]) -> list[np.ndarray]:
        with torch.inference_mode():
            levels = encode(torch.from_numpy(ids).cuda(), torch.from_numpy(mask).cuda())
            return [level.float().cpu().numpy() for level in levels]

    return {
        "images, torch fp16 eager": lambda: images(model.encode_images),
        "images, torch fp16 compiled": lambda: images(compiled["images"]),
        "texts, torch fp16 eager": lambda: texts(model.encode_texts),
        "texts, torch fp16 compiled": lambda: texts(compiled["texts"]),
    }


def onnxruntime_targets(bundle: Bundle, pixels: np.ndarray, ids: np.ndarray) -> dict[str, Run]:
    """The bundle's own fp16 graphs on ONNX Runtime's CUDA provider; none where it isn't there."""
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        print("no CUDA provider: install onnxruntime-gpu to have it compared", file=sys.stderr)
        return {}

    def opened(name: str) -> onnxruntime.InferenceSession:
        path = str(bundle.graph_path(name))
        return onnxruntime.InferenceSession(path, providers=["CUDAExecutionProvider"])

    image, text = opened("image"), opened("text")
    image_names = [f"image_level{level}" for level in (1, 2, 3)]
    text_names = [f"text_level{level}" for level in (1, 2, 3)]
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {
        "images, ONNX Runtime CUDA": lambda: image.run(image_names, {"pixel_values": pixels}),
        "texts, ONNX Runtime CUDA": lambda: text.run(text_names, feed),
    }


def measure(runs: dict[str, Run], seconds: float) -> dict[str, np.ndarray]:
    """Milliseconds of every call, targets called in turn."""
    # The first calls compile, plan, capture.
    found = Timer().in_turn(runs, rounds=1, seconds=seconds * len(runs), warm_up=10)
    return {name: np.array([1e3 * call.own for call in calls]) for name, calls in found.items()}


def check(runs: dict[str, Run]) -> None:
    """Stop if a target's features aren't those of the first of its kind."""
    first: dict[str, Any] = {}
    for name, run in runs.items():
        levels = run()
        kind = name.split(",")[0]
        expected = first.setdefault(kind, levels)
        for ours, theirs in zip(levels, expected, strict=True):
            difference = float(np.abs(ours - theirs).max())
            if not difference <= 2 * PRECISIONS["fp16"].feature_tolerance:
                raise SystemExit(f"{name}: features differ by {difference:.3g}; nothing is timed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/tensorrt"))
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--batch", type=int, action="append", help="images or captions [1, 8, 64]")
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    gpu = find_gpu()
    if gpu is None:
        raise SystemExit(
            "no NVIDIA GPU here, or no driver, or no cuda-bindings: nothing to measure"
        )
    library = load_library(options.runtime)
    batches = options.batch or [1, 8, 64]
    profiles = [ProfileRequest(Range(size, size, size), 1, WORDS, None) for size in batches]
    exported = export_engines(
        options.checkpoint,
        options.out / "engines",
        library,
        "fp16",
        profiles,
        choose_targets(library, "fp16", []),
        overwrite=True,
        progress=progress_on_stderr(quiet=False),
    )
    rows, parts, data = [], [], []
    with TensorRtSession(exported.bundle, threads=1) as session:
        for size in batches:
            pixels = noise_pixels(session.spec, size, seed=size)
            ids, _ = noise_captions(session.spec, size, WORDS, seed=size)
            mask = np.ones_like(ids)
            runs = torch_targets(options.checkpoint, pixels, ids)
            runs |= onnxruntime_targets(exported.bundle, pixels, ids)
            name = f"{library.name} fp16"
            runs[f"images, {name}"] = lambda p=pixels: session.encode_images(p).levels
            runs[f"texts, {name}"] = lambda i=ids, m=mask: session.encode_texts(i, m).levels
            check(runs)
            for target, milliseconds in measure(runs, options.seconds).items():
                p50, p99 = np.quantile(milliseconds, (0.5, 0.99))
                rows.append(
                    (target, str(size), f"{p50:.2f}", f"{p99:.2f}", f"{1e3 * size / p50:,.0f}")
                )
                data.append({"target": target, "batch": size, "p50_ms": p50, "p99_ms": p99})
            for engine in ("image", "text"):
                found = session.parts(engine)
                parts.append((engine, str(size), *(f"{1e3 * found[part]:.3f}" for part in PARTS)))
    tables = (
        Table("Latency", ("", "batch", "p50 ms", "p99 ms", "items/s"), tuple(rows)),
        Table("Parts of a TensorRT call, ms", ("engine", "batch", *PARTS), tuple(parts)),
    )
    facts = {"gpu": gpu.name, "library": str(library), **environment()}
    summary = (f"{gpu.name}, {library}; captions of {WORDS} word pieces.",)
    report = Report(
        "latency", "TensorRT", None, summary, tables, {"rows": data, "environment": facts}
    )
    for ending in ("json", "md"):
        write_report(report, options.out / f"latency.{ending}")
    print(report.to_markdown())


if __name__ == "__main__":
    try:
        main()
    except HatError as error:
        raise SystemExit(f"error: {error}") from None
