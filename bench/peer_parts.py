"""Parts of the published figures that measure the project beside other tools."""

from __future__ import annotations

import statistics
from pathlib import Path

from workbench import DATA, DEMO, HERE, Bench, Rows


def peers(bench: Bench) -> Rows:
    """The encoders beside other exporters and runtimes, and the bound of their products."""
    python = bench.peers()
    folder = bench.out / "peers"
    points = ("text:1x16",) if bench.quick else ("image:1", "image:8", "text:1x16", "text:32x16")
    rounds = 1 if bench.quick else 4
    bench.run(
        *(HERE / "encoders.py", bench.checkpoint(), "--out", folder),
        *("--standard", bench.official(), "--packed", bench.packed()),
        *("--rounds", rounds, "--points", *points),
        python=python,
    )
    content = bench.written(folder / "encoders.json")
    rows = []
    for point, found in content["points"].items():
        for title, peer in found["peers"].items():
            seconds = peer.get("seconds")
            median = statistics.median(seconds) if seconds else None
            reason = None if median else peer.get("error", "not measured")
            if reason:
                print(f"  {title} at {point} not measured: {reason}", flush=True)
            rows.append(
                {
                    "point": point,
                    "peer": title,
                    "median_ms": median and 1e3 * median,
                    "share_of_bound": median and found["bound"]["seconds"] / median,
                    "peak_bytes": peer.get("peak_bytes"),
                    "reason": reason,
                }
            )
    return rows


def quantization(bench: Bench) -> Rows:
    """Quantized encoders of the demo model beside the stock tools: size, latency, recall."""
    few = ("--image-count", 16, "--only", "int8-dynamic") if bench.quick else ()
    return _quantization(bench, "quantization", DEMO, "--data", DATA, *few)


def quantization_official(bench: Bench) -> Rows:
    """The same at the official size: size, latency, errors of the features."""
    few = ("--only", "int8-dynamic", "--points", "text:1") if bench.quick else ()
    points = few or ("--points", "image:1", "text:1", "text:32", "--rounds", 6)
    bench.peers()  # before the checkpoint, which takes long to make
    return _quantization(
        *(bench, "quantization_official", bench.checkpoint()),
        *("--calibration", DATA, "--image-count", 16, "--official", *points),
    )


def _quantization(bench: Bench, name: str, checkpoint: Path, *options: object) -> Rows:
    python = bench.peers()
    folder = bench.out / name
    (folder / "quantization.json").unlink(missing_ok=True)  # what was made is kept, not measured
    bench.run(HERE / "quantization.py", checkpoint, "--out", folder, *options, python=python)
    variants = bench.written(folder / "quantization.json")["variants"]
    for title, row in variants.items():
        if "error" in row:
            print(f"  {title} not measured: {row['error']}", flush=True)
    return [{"variant": title, **row} for title, row in variants.items()]
