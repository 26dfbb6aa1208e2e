"""What flows through the layers of a graph: ranges, histograms and sample rows, in bounded memory.

Every layer's input becomes an output of the graph. A batch at a time goes through it, and of each
tensor only a histogram, the largest magnitude per channel and a few rows are kept: memory doesn't
grow with the number of images or captions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Float32, Int64

from hat_export.errors import InputError
from hat_export.export.observe import Feed, mark_outputs, observe_tensors, open_graph
from hat_export.quantize.layers import Layer

#: Bins of a histogram over [-reach, reach).
BINS = 4096
#: Rows of each layer's input that are kept to try quantizations on.
SAMPLE_ROWS = 128
#: Rows that are kept of one batch, so that the sample is spread over the data.
BATCH_ROWS = 8
#: Levels that 8 bits tell apart.
LEVELS = 256
#: Ranges that are tried, as shares of the widest.
SHARES = np.geomspace(1.0, 0.05, 60)
#: Share of values that a percentile range leaves out at each end.
OUTSIDE = 1e-5

METHODS = ("minmax", "percentile", "entropy", "mse")


class Observer:
    """Statistics of one tensor.

    Args:
        channels: Size of its last axis.
        correlated: Whether to sum the products of its channels too.
    """

    def __init__(self, channels: int, correlated: bool = False) -> None:
        self.low = np.inf
        self.high = -np.inf
        self.largest: Float32[np.ndarray, " channels"] = np.zeros(channels, np.float32)
        self.counts: Int64[np.ndarray, " bins"] = np.zeros(BINS, np.int64)
        self.reach = 0.0
        self.gram: Float32[np.ndarray, "channels channels"] | None = None
        if correlated:
            self.gram = np.zeros((channels, channels), np.float32)
        self._rows: list[np.ndarray] = []

    def see(self, values: Float32[np.ndarray, "*batch channels"]) -> None:
        """Add a batch.

        Raises:
            InputError: on NaN or infinity.
        """
        rows = values.reshape(-1, values.shape[-1])
        magnitudes = np.abs(rows).max(0)
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise InputError("an activation is NaN or infinite in float32; the model is broken")
        np.maximum(self.largest, magnitudes, out=self.largest)
        self.low = min(self.low, float(rows.min()))
        self.high = max(self.high, float(rows.max()))
        if self.gram is not None:
            self.gram += rows.T @ rows
        self._widen(largest)
        places = (rows * np.float32(BINS / 2 / self.reach) + np.float32(BINS / 2)).astype(np.int32)
        np.clip(places, 0, BINS - 1, out=places)
        self.counts += np.bincount(places.reshape(-1), minlength=BINS)
        if sum(map(len, self._rows)) < SAMPLE_ROWS:
            step = max(1, len(rows) // BATCH_ROWS)
            self._rows.append(rows[::step][:BATCH_ROWS].copy())

    @property
    def rows(self) -> Float32[np.ndarray, "rows channels"]:
        """A sample of the rows seen."""
        return np.concatenate(self._rows)[:SAMPLE_ROWS]

    def range(self, method: str) -> tuple[float, float]:
        """The range that quantized values cover; it holds 0.

        Args:
            method: One of :data:`METHODS`.
        """
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or low == high:
            return low, high
        centres = (np.arange(BINS) + 0.5) * (2 * self.reach / BINS) - self.reach
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            first, last = np.searchsorted(share, (OUTSIDE, 1 - OUTSIDE))
            return max(low, min(centres[first], 0.0)), min(high, max(centres[last], 0.0))
        cost = _divergence if method == "entropy" else _squared_error
        costs = [cost(self.counts, centres, low * share, high * share) for share in SHARES]
        share = SHARES[int(np.argmin(costs))]
        return float(low * share), float(high * share)

    def _widen(self, largest: float) -> None:
        """Double the histogram's reach, pairs of bins into one, until it holds the magnitude."""
        if self.reach == 0.0:
            # One doubling of head room spares most of the later ones.
            self.reach = max(2 * largest, float(np.finfo(np.float32).tiny) * BINS)
        while largest > self.reach:
            merged = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = merged
            self.reach *= 2


def _quantized(centres: np.ndarray, low: float, high: float) -> np.ndarray:
    """Level, as a whole number from 0, of each centre; values outside of the range are clipped."""
    step = (high - low) / (LEVELS - 1)
    clipped: np.ndarray = np.clip(np.rint((centres - low) / step), 0, LEVELS - 1).astype(np.int64)
    return clipped


def _squared_error(counts: np.ndarray, centres: np.ndarray, low: float, high: float) -> float:
    step = (high - low) / (LEVELS - 1)
    restored = low + step * _quantized(centres, low, high)
    width = centres[1] - centres[0]
    # Within a bin values lie anywhere: where steps are finer than bins, the rounding itself is
    # what remains.
    rounding = min(step, width) ** 2 / 12
    return float((counts * (np.square(restored - centres) + rounding)).sum())


def _divergence(counts: np.ndarray, centres: np.ndarray, low: float, high: float) -> float:
    """Kullback-Leibler divergence of the clipped, quantized distribution from the true one.

    After Migacz, "8-bit inference with TensorRT" (2017): values outside of the range count as its
    ends in the reference; a level's count is spread evenly over its non-empty bins.
    """
    level = _quantized(centres, low, high)
    inside = (centres >= low) & (centres <= high)
    reference = np.where(inside, counts, 0).astype(np.float64)
    if not reference.any():
        return np.inf
    first, last = np.flatnonzero(inside)[[0, -1]]
    filled = reference > 0
    sums = np.bincount(level, np.where(inside, counts, 0), LEVELS)
    bins = np.bincount(level, filled, LEVELS)
    spread = np.where(filled, (sums / np.maximum(bins, 1))[level], 0.0)
    reference[first] += counts[:first].sum()
    reference[last] += counts[last + 1 :].sum()
    share, model = reference / reference.sum(), spread / spread.sum()
    kept = (share > 0) & (model > 0)
    lost = share[(share > 0) & ~kept].sum()  # an end that was empty before values were put there
    return float((share[kept] * np.log(share[kept] / model[kept])).sum() + 10 * lost)


@dataclass(frozen=True)
class Calibration:
    """What was seen.

    Attributes:
        observers: By layer name, of the layer's input.
    """

    observers: Mapping[str, Observer] = field(default_factory=dict)


def observe_ranges(
    model: onnx.ModelProto,
    folder: Path,
    layers: Sequence[Layer],
    feeds: Iterable[Feed],
    threads: int,
    correlated: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[dict[str, Observer], str, int]:
    """Run data through a graph and watch the inputs of its layers.

    Args:
        model: float32 graph; changed: it gains outputs.
        folder: Where a copy of the graph may be written.
        layers: What to watch; tables are left out.
        feeds: Inputs, gone through once.
        threads: Threads of the run.
        correlated: Whether to sum the products of channels too, for compensated rounding; takes
            4 bytes for each pair of channels of each layer.
        progress: Called with the number of items done.

    Returns:
        Observers by layer name, SHA-256 of all inputs, and the number of items.
    """
    watched = {layer.value: layer for layer in layers if not layer.table}
    mark_outputs(model, watched)
    session = open_graph(model, threads, own_operators=True, folder=folder)
    observers = {layer.value: Observer(layer.inner, correlated) for layer in watched.values()}
    digest, items = hashlib.sha256(), 0
    for feed, found in observe_tensors(session, list(watched), feeds):
        for name in sorted(feed):
            digest.update(np.ascontiguousarray(feed[name]).tobytes())
        real = feed.get("attention_mask")
        for name, values in found.items():
            # Padding takes part in no result.
            observers[name].see(values if real is None else values[real > 0])
        items += len(next(iter(feed.values())))
        progress(items)
    if not items:
        raise InputError("the calibration data holds nothing; expected at least one item")
    by_layer = {layer.name: observers[layer.value] for layer in layers if not layer.table}
    return by_layer, digest.hexdigest(), items
