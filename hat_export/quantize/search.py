"""The fastest, or smallest, mixture of schemes within a recall budget.

1. What each block of layers does to the scores, quantized alone in each scheme: the variance of the
   scores' change over the variance of the scores. Cheap: a few images, one encoder at a time.
2. Changes of different blocks are nearly independent, so that their variances add up. For a price
   on that sum, the best scheme of each block is the one of least cost plus price: all prices
   together give a ladder of plans from the cheapest to float32.
3. Recall decides, by the same judgement as ``hat-bench parity``: the ladder is bisected for its
   cheapest plan within the budget. How well predicted and measured change agree is reported.

Everything measured goes to a state file at once, and is not measured again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.files import sha256_of, write_text
from hat_export.base.timer import Timer
from hat_export.bundle.bundle import MANIFEST, Bundle
from hat_export.data.dataset import CaptionDataset
from hat_export.errors import InputError
from hat_export.parity.budget import Verdict, judge, overall
from hat_export.parity.comparison import compare_scores
from hat_export.parity.statistics import RECALLS, Delta, deltas
from hat_export.quantize.bundles import ENCODERS, Quantizer
from hat_export.quantize.latency import PlanTimer
from hat_export.quantize.layers import Layer
from hat_export.quantize.plan import Plan, table_scheme, uniform_plan
from hat_export.quantize.preflight import Preflight, measure_products, runnable
from hat_export.quantize.schemes import FP32, SCHEMES, Target
from hat_export.quantize.search_state import new_state, read_state, restored
from hat_export.quantize.weights import block_size
from hat_export.runtime.backends.onnxruntime_backend import PACKED_ATTENTION, OnnxRuntimeSession
from hat_export.runtime.evaluate import score_dataset

#: Images on which a block's change of the scores is measured, with one caption each.
PROXY_IMAGES = 48
#: Prices that are tried, relative to the cost of the whole model.
PRICES = np.geomspace(1e-2, 1e7, 200)


@dataclass(frozen=True)
class Search:
    """What to search.

    Attributes:
        quantizer: The bundle, with its calibration data.
        target: The machine.
        budget: Largest drop of recall in points, by metric.
        objective: ``latency`` or ``size``.
        data: Images and captions on which recall is measured.
        keep: Beginnings of layer names that stay float32, with the reason.
        method: How static ranges are chosen.
        smooth: Whether to move outliers into weights.
        compensate: Whether later weights make up for earlier ones' rounding.
        state: File of what has been measured; None for none.
    """

    quantizer: Quantizer
    target: Target
    budget: Mapping[str, float]
    objective: str
    data: CaptionDataset
    keep: Mapping[str, str] = field(default_factory=dict)
    method: str = "minmax"
    smooth: bool = False
    compensate: bool = False
    state: Path | None = None


@dataclass(frozen=True)
class Tried:
    """A plan and what was measured of it.

    Attributes:
        name: What reports call it.
        plan: The plan.
        predicted: Variance of the scores' change over that of the scores, as the sum of its parts.
        measured: The same on the data.
        bytes: Size of both encoders' graphs.
        seconds: Latency of one image plus one caption of 16 words, without waits for a
            core, at the speed that the machine had when the first plan was measured.
        deltas: Recalls and rsum in percent, beside float32's, with the intervals of the difference.
        verdict: Of the budget.
    """

    name: str
    plan: Plan
    predicted: float
    measured: float
    bytes: int
    seconds: float
    deltas: Mapping[str, Delta]
    verdict: str

    @property
    def within(self) -> bool:
        """Whether the observed loss is within the budget."""
        return self.verdict != Verdict.failed.value

    def cost(self, objective: str) -> float:
        """What the search makes small."""
        return self.seconds if objective == "latency" else float(self.bytes)

    @property
    def rsum(self) -> float:
        """Sum of the six recalls."""
        return self.deltas["rsum"].candidate

    @property
    def lost(self) -> float:
        """Points of rsum lost against float32."""
        return 0.0 - self.deltas["rsum"].difference

    @property
    def worst(self) -> float:
        """The worst end of the 95 % interval of :attr:`lost`."""
        return 0.0 - self.deltas["rsum"].low

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return {**asdict(self), "plan": self.plan.to_json()}


@dataclass(frozen=True)
class Outcome:
    """Result of a search.

    Attributes:
        search: What was searched.
        noise: Change of the scores by block and scheme.
        preflight: Times of products.
        tried: Every plan measured; float32 first.
        best: The one that was chosen.
        correlation: Rank correlation (Spearman) of predicted change and measured loss of rsum,
            over the plans tried; None with fewer than three.
    """

    search: Search
    noise: Mapping[str, Mapping[str, float]]
    preflight: Preflight
    tried: tuple[Tried, ...]
    best: Tried
    correlation: float | None


def search_plan(task: Search, timer: Timer | None = None) -> Outcome:
    """Find the cheapest plan within the budget.

    Args:
        task: What to search.
        timer: What times the plans.

    Raises:
        InputError: if the state file is of another search, or nothing but float32 keeps the budget.
    """
    run = _Run(task, timer or Timer())
    ladder = run.ladder()
    reference = run.measure("float32", Plan(task.target.name, {}, {}, task.method, False))
    for scheme in run.schemes:
        plan = uniform_plan(
            task.quantizer.all_layers,
            SCHEMES[scheme],
            task.target,
            task.keep,
            task.method,
            task.smooth,
            task.compensate,
        )
        run.measure(scheme, plan)
    low, high = 0, len(ladder)  # the ladder goes from the cheapest to float32
    while low < high:
        middle = (low + high) // 2
        if run.measure(f"mixed {middle}", ladder[middle]).within:
            high = middle
        else:
            low = middle + 1
    # Recall isn't quite monotonous: the next cheaper ones may keep the budget by luck of a few
    # ranks, which is no reason to take them; the next dearer are measured to show the slope.
    for index in (low - 1, low + 1, low + 3):
        if 0 <= index < len(ladder):
            run.measure(f"mixed {index}", ladder[index])
    tried = tuple(run.tried.values())
    candidates = [one for one in tried if one.within and one is not reference]
    if not candidates:
        raise InputError(
            "no plan but float32 keeps the budget; allow more, or calibrate on more images"
        )
    best = min(candidates, key=lambda one: one.cost(task.objective))
    return Outcome(task, run.noise, run.preflight, tried, best, _correlation(tried[1:]))


class _Run:
    """A search in progress, with its state."""

    def __init__(self, task: Search, timer: Timer) -> None:
        self.task = task
        self.quantizer = task.quantizer
        self.schemes = runnable(task.target.schemes)
        self.identity = {
            "source": sha256_of(self.quantizer.source.path / MANIFEST),
            "target": task.target.name,
            "data": task.data.name,
            "images": len(task.data.entries),
            "method": task.method,
            "smooth": task.smooth,
            "compensate": task.compensate,
            "keep": sorted(task.keep),
        }
        self.state = self._resume()
        self.plan_timer = PlanTimer(timer, self.state.get("reference_seconds"))
        self.noise: dict[str, dict[str, float]] = self.state["noise"]
        self.scratch = self.quantizer.work / "tried"
        manifest = self.quantizer.source.manifest
        self.preflight = measure_products(
            self.quantizer.layers,
            manifest.spec,
            task.target,
            self.schemes,
            self.quantizer.threads,
            manifest.attention_form == PACKED_ATTENTION,
        )
        self.tried: dict[str, Tried] = {}
        self._scores: np.ndarray | None = None
        self.blocks: dict[str, list[Layer]] = {}
        for layer in self.quantizer.all_layers:
            kept = any(layer.name.startswith(start) for start in task.keep)
            if not kept and not (layer.table and task.target.standard):
                self.blocks.setdefault(layer.block, []).append(layer)
        self._find_noise()

    def _resume(self) -> dict[str, Any]:
        path = self.task.state
        if path is None or not path.exists():
            return new_state(self.identity)
        found = read_state(path, self.identity)
        self.quantizer.progress.step(f"going on from {path}: {len(found['tried'])} plans measured")
        if found["tried"] and found.get("reference_seconds") is None:
            self.quantizer.progress.step(
                "their times are those of another version, which left the machine's speed in them"
            )
        return found

    def _save(self) -> None:
        if self.task.state is not None:
            write_text(self.task.state, json.dumps(self.state, indent=1) + "\n")

    def _open(self, plan: Plan) -> OnnxRuntimeSession:
        shutil.rmtree(self.scratch, ignore_errors=True)
        bundle = (
            self.quantizer.write(plan, self.scratch, check=False)
            if plan.layers
            else self.quantizer.source
        )
        return OnnxRuntimeSession(bundle, self.quantizer.threads)

    def _plan(self, layers: Mapping[str, str]) -> Plan:
        kept = {
            layer.name: reason
            for layer in self.quantizer.all_layers
            for start, reason in self.task.keep.items()
            if layer.name.startswith(start)
        }
        rest = (layer.name for layer in self.quantizer.all_layers if layer.name not in layers)
        kept |= {
            name: "sensitive: quantized, it costs more recall than it is worth"
            for name in rest
            if name not in kept
        }
        task = self.task
        return Plan(task.target.name, layers, kept, task.method, task.smooth, task.compensate)

    def _layers(self, block: str, scheme: str) -> dict[str, str]:
        return {
            layer.name: table_scheme(SCHEMES[scheme]) if layer.table else scheme
            for layer in self.blocks[block]
        }

    def _find_noise(self) -> None:
        """Step 1: what each block does to the scores."""
        data = self.task.data.take(1).limit(PROXY_IMAGES)
        pixels: np.ndarray | None = None
        wanted = [
            (block, scheme)
            for block in self.blocks
            for scheme in self.schemes
            if scheme not in self.noise.get(block, {})
        ]
        if not wanted:
            return
        source = self._open(self._plan({}))
        pixels = source.preprocess(list(data.images()))
        images, texts = source.encode_images(pixels), source.encode_texts(data.captions)
        exact = source.score(images, texts)
        spread = float(np.var(exact))
        for number, (block, scheme) in enumerate(wanted, start=1):
            with self._open(self._plan(self._layers(block, scheme))) as session:
                # Only one encoder has changed.
                first = {layer.name for layer in self.quantizer.layers["image"]}
                if self.blocks[block][0].name in first:
                    scores = source.score(session.encode_images(pixels), texts)
                else:
                    scores = source.score(images, session.encode_texts(data.captions))
            self.noise.setdefault(block, {})[scheme] = float(np.var(scores - exact)) / spread
            self._save()
            self.quantizer.progress.count("blocks tried", number, len(wanted))
        source.close()

    def cost(self, layer: Layer, scheme: str) -> float:
        """What one layer adds to the objective."""
        if self.task.objective == "latency":
            # Bytes break ties, so that a table, which costs no time, is stored small.
            time_cost = 0.0 if layer.table else self.preflight.of_layer(layer.name, scheme)
            return time_cost + 1e-15 * stored_bytes(layer, scheme)
        return float(stored_bytes(layer, scheme))

    def ladder(self) -> list[Plan]:
        """Step 2: plans from the cheapest to the most exact."""
        costs = {
            block: {
                scheme: sum(
                    self.cost(layer, name)
                    for layer, name in zip(
                        layers, self._layers_or_fp32(block, scheme).values(), strict=True
                    )
                )
                for scheme in (FP32, *self.schemes)
            }
            for block, layers in self.blocks.items()
        }
        whole = sum(cost[FP32] for cost in costs.values())
        plans: dict[tuple[str, ...], Plan] = {}
        for price in PRICES:
            picked = {}
            for block, cost in costs.items():
                totals = {
                    scheme: value / whole + price * self.noise_of(block, scheme)
                    for scheme, value in cost.items()
                }
                picked[block] = min(totals, key=totals.__getitem__)
            layers: dict[str, str] = {}
            for block, scheme in picked.items():
                if scheme != FP32:
                    layers |= self._layers(block, scheme)
            if layers:
                plans.setdefault(tuple(picked.values()), self._plan(layers))
        return list(plans.values())

    def _layers_or_fp32(self, block: str, scheme: str) -> dict[str, str]:
        if scheme == FP32:
            return {layer.name: FP32 for layer in self.blocks[block]}
        return self._layers(block, scheme)

    def noise_of(self, block: str, scheme: str) -> float:
        """Change of the scores by one block."""
        return 0.0 if scheme == FP32 else self.noise[block][scheme]

    def predicted(self, plan: Plan) -> float:
        """Change of the scores by a plan: the sum of its blocks'."""
        total = 0.0
        for block, layers in self.blocks.items():
            product = next((one for one in layers if not one.table), layers[0])
            scheme = plan.layers.get(product.name, FP32)
            total += self.noise_of(block, scheme)
        return total

    def measure(self, name: str, plan: Plan) -> Tried:
        """Step 3: recall, size and latency of a plan, from the state if they are there."""
        for entry in self.state["tried"]:
            if entry["plan"] == plan.to_json():
                found = restored(entry["deltas"])
                verdict = self._verdict(found)
                values = entry | {"name": name, "plan": plan, "deltas": found, "verdict": verdict}
                self.tried[name] = Tried(**values)
                return self.tried[name]
        task, source = self.task, self.quantizer.source
        if self._scores is None:
            self.quantizer.progress.step("scoring with the float32 bundle")
            with OnnxRuntimeSession(source, self.quantizer.threads) as session:
                self._scores = score_dataset(session, task.data)
        self.quantizer.progress.step(f"measuring {name}: {plan.title()}")
        with self._open(plan) as session:
            scores = score_dataset(session, task.data)
            bytes_ = encoder_bytes(source if not plan.layers else Bundle.read(self.scratch, False))
            seconds = self.plan_timer.seconds(session)
        parity = compare_scores(self._scores, scores, task.data.owners)
        everything = deltas(parity)
        found = {metric: everything[metric] for metric in (*RECALLS, "rsum")}
        self.tried[name] = Tried(
            name=name,
            plan=plan,
            predicted=self.predicted(plan),
            measured=float(np.var(scores - self._scores) / np.var(self._scores)),
            bytes=bytes_,
            seconds=seconds,
            deltas=found,
            verdict=self._verdict(found),
        )
        self.state["reference_seconds"] = self.plan_timer.first_reference
        self.state["tried"].append(self.tried[name].to_json())
        self._save()
        return self.tried[name]

    def _verdict(self, found: Mapping[str, Delta]) -> str:
        judged = judge(found, self.task.budget, len(self.task.data.entries))
        return overall(judged, strict=False).value


def stored_bytes(layer: Layer, scheme: str) -> float:
    """Bytes that a layer's weight takes in a scheme, scales included."""
    if scheme == FP32:
        return 4.0 * layer.values
    bits = SCHEMES[scheme].bits
    width = layer.outer if layer.table else layer.inner
    blocks = layer.table or bits == 4
    scales = layer.values / block_size(width, bits) if blocks else layer.outer
    return layer.values * bits / 8 + 4 * scales


def encoder_bytes(bundle: Bundle) -> int:
    """Size of both encoders' files."""
    names = {bundle.manifest.graphs[encoder].file for encoder in ENCODERS}
    return sum(
        info.bytes
        for name, info in bundle.manifest.files.items()
        if name.removesuffix(".data") in names
    )


def _correlation(tried: Sequence[Tried]) -> float | None:
    """Spearman's rank correlation of predicted change and loss of rsum."""
    if len(tried) < 3:
        return None
    values = [one.predicted for one in tried], [one.lost for one in tried]
    ranks = [np.argsort(np.argsort(each)).astype(float) for each in values]
    if any(float(np.std(rank)) == 0 for rank in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
