"""What this machine gains by quantized products, measured on a model's own layer sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from hat_export.base.machine import cpu_features
from hat_export.base.progress import SILENT, Progress
from hat_export.base.timer import Timer, own_median
from hat_export.export.graph import GraphBuilder
from hat_export.export.linear_layers import FuseLinear
from hat_export.export.observe import open_graph
from hat_export.quantize.layers import WEIGHT_SUFFIX, Layer
from hat_export.quantize.plan import Plan
from hat_export.quantize.rewrite import QuantizeLayers
from hat_export.quantize.schemes import FP32, SCHEMES, Target
from hat_export.report.report import Report, Table
from hat_export.spec import ModelSpec

#: Words of the caption that is measured.
WORDS = 16
#: Rounds of the schemes in turn, and calls of each in a round that are timed; the median counts.
ROUNDS, CALLS = 3, 3
#: Seconds before a scheme's turn: the runtime's threads spin longer than others.
PAUSE = 0.02
#: Products of one size in a row, so that a call is long beside its own overhead.
CHAIN = 4

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Preflight:
    """Times of a model's products.

    Attributes:
        target: Name of the machine that was prepared for.
        sizes: Rows, inner and outer size of each layer, for one image or caption.
        seconds: By size and scheme, of one product, quantizing its input included.
        encoders: Layer names by encoder.
    """

    target: str
    sizes: Mapping[str, Size]
    seconds: Mapping[Size, Mapping[str, float]]
    encoders: Mapping[str, tuple[str, ...]]

    def of_layer(self, layer: str, scheme: str) -> float:
        """Seconds of one layer; 0 for tables, which cost next to nothing."""
        return self.seconds[self.sizes[layer]][scheme] if layer in self.sizes else 0.0

    def total(self, encoder: str, scheme: str) -> float:
        """Seconds of an encoder's products for one item, all alike."""
        return sum(self.of_layer(layer, scheme) for layer in self.encoders[encoder])

    def slower(self, scheme: str) -> tuple[str, ...]:
        """Encoders whose products a scheme makes slower than float32."""
        return tuple(
            name for name in self.encoders if self.total(name, scheme) > self.total(name, FP32)
        )

    def to_json(self) -> dict[str, Any]:
        """Everything measured."""
        return {
            "target": self.target,
            "cpu_features": sorted(cpu_features()),
            "seconds": {
                "x".join(map(str, size)): dict(times) for size, times in self.seconds.items()
            },
        }


def runnable(schemes: Sequence[str]) -> tuple[str, ...]:
    """Those among some schemes that a CPU can compute in, rather than imitate."""
    return tuple(name for name in schemes if name != "fp8")


def measure_products(
    layers: Mapping[str, Sequence[Layer]],
    spec: ModelSpec,
    target: Target,
    schemes: Sequence[str],
    threads: int,
    packed: bool,
    progress: Progress = SILENT,
) -> Preflight:
    """Time the products of one image and one caption.

    Args:
        layers: By encoder.
        spec: The architecture.
        target: The machine prepared for; what is timed is this machine.
        schemes: Names of schemes; float32 is timed in any case.
        threads: Threads of the products.
        packed: Whether the float32 graph has this project's operators, which are to be beaten.
        progress: Told after each size.
    """
    products = {
        name: [layer for layer in found if not layer.table] for name, found in layers.items()
    }
    sizes = {
        layer.name: (rows_of(layer.name, spec), layer.inner, layer.outer)
        for found in products.values()
        for layer in found
    }
    distinct = sorted(set(sizes.values()))
    seconds = {}
    for number, size in enumerate(distinct, start=1):
        seconds[size] = _time(size, target, (FP32, *schemes), threads, packed)
        progress.count("sizes measured", number, len(distinct))
    encoders = {name: tuple(layer.name for layer in found) for name, found in products.items()}
    return Preflight(target.name, sizes, seconds, encoders)


def rows_of(layer: str, spec: ModelSpec) -> int:
    """Tokens that go through a layer, for one image or one caption of :data:`WORDS` words."""
    parts = layer.split(".")
    if parts[0] == "vit_model":
        stage = int(parts[2]) if parts[1] == "layers" else 0
        return spec.stage_sides[stage] ** 2
    if parts[0].startswith("cross_modal_image_transform"):
        suffix = parts[0].removeprefix("cross_modal_image_transform").lstrip("_")
        return spec.level_regions[int(suffix) - 1 if suffix else -1]
    return min(WORDS, spec.max_words)


def _time(
    size: Size, target: Target, schemes: Sequence[str], threads: int, packed: bool
) -> dict[str, float]:
    """Median seconds of one product by scheme, the schemes in turn."""
    rows, inner, outer = size
    sessions = {}
    for scheme in schemes:
        model = _products(rows, inner, outer, scheme, target)
        if packed:
            model = FuseLinear(target.int8_linear)(model).model
        sessions[scheme] = open_graph(model, threads, own_operators=packed)
    feed = {"x": np.random.default_rng(0).standard_normal((1, rows, inner), np.float32)}
    runs = {scheme: partial(session.run, None, feed) for scheme, session in sessions.items()}
    found = Timer(settle_seconds=PAUSE).in_turn(runs, ROUNDS, CALLS, warm_up=0)
    return {scheme: own_median(calls) / CHAIN for scheme, calls in found.items()}


def _products(rows: int, inner: int, outer: int, scheme: str, target: Target) -> onnx.ModelProto:
    """A graph of some products of one input, in a scheme."""
    random = np.random.default_rng(1)
    graph = GraphBuilder("preflight")
    value = graph.input("x", np.float32, [1, rows, inner])
    names = [f"product{number}" for number in range(CHAIN)]
    for name in names:
        weight = random.standard_normal((inner, outer), np.float32) / np.float32(inner**0.5)
        # Each reads its own copy of the input, as layers do; a copy is cheap beside a product.
        own = graph.node("Neg", [value])
        matrix = graph.weight(f"{name}{WEIGHT_SUFFIX}", weight)
        product = graph.node("MatMul", [own, matrix])
        graph.output(graph.node("ReduceMax", [product]), name, np.float32, [1, 1, 1])
    model = graph.model({})
    plan = Plan(target.name, {} if scheme == FP32 else dict.fromkeys(names, scheme))
    return QuantizeLayers(plan, dict.fromkeys(names, (-4.0, 4.0)))(model).model


def preflight_report(found: Preflight, spec: ModelSpec, threads: int) -> Report:
    """What the machine gains, encoder by encoder and size by size."""
    schemes = [name for name in next(iter(found.seconds.values())) if name != FP32]
    used = Counter(found.sizes.values())
    totals = tuple(
        (
            encoder,
            scheme,
            f"{1e3 * found.total(encoder, scheme):.2f}",
            f"{found.total(encoder, FP32) / found.total(encoder, scheme):.2f}x",
        )
        for encoder in found.encoders
        for scheme in (FP32, *schemes)
    )
    sizes = tuple(
        (
            f"{rows} x {inner} x {outer}",
            str(used[(rows, inner, outer)]),
            *(f"{1e3 * times[scheme]:.3f}" for scheme in (FP32, *schemes)),
        )
        for (rows, inner, outer), times in found.seconds.items()
    )
    features = ", ".join(sorted(cpu_features())) or "unknown"
    lines = [f"CPU features: {features}. Target: {found.target}. {threads} threads."]
    for scheme in schemes:
        slower = found.slower(scheme)
        if slower:
            lines.append(
                f"{scheme} makes the products of {' and '.join(slower)} slower than float32 on "
                "this machine: use it for size, or not at all."
            )
    note = (
        f"Products only, of one image or one caption of {WORDS} words; "
        f"medians of {ROUNDS * CALLS} calls."
    )
    return Report(
        "preflight",
        f"Preflight: {spec.name}",
        None,
        tuple(lines),
        (
            Table("Products of an encoder", ("encoder", "scheme", "ms", "speed"), totals, note),
            Table(
                "Sizes",
                ("rows x inner x outer", "layers", *(f"{name} ms" for name in (FP32, *schemes))),
                sizes,
                "; ".join(f"{name}: {SCHEMES[name].reason}" for name in schemes),
            ),
        ),
        found.to_json(),
    )
