"""Speed of the scoring kernel beside its bound and beside the formula in PyTorch.

Per level, in turn and over and over, so that whatever else the machine does falls on all alike: the
kernel in its reduced form; a bare float32 matrix product of the same reduced shapes by every BLAS
at hand (OpenBLAS through numpy; MKL and oneDNN through torch), as one product and group by group,
of which the fastest counts; and the score as the paper writes it in PyTorch, batched over images,
captions one by one. Times are medians over the rounds, ratios medians of the per-round ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from hat_export.base.timer import Timer
from hat_export.kernels import alignment_cpu
from hat_export.kernels.alignment_cpu import KernelPath
from hat_export.report.report import Report, Table
from hat_export.spec import ModelSpec

if TYPE_CHECKING:
    import torch

#: Columns of a grouped product: what fits a core's cache and what the kernel itself takes.
COLUMNS_PER_GROUP = 784
#: True lengths as Flickr30K's captions have them, [CLS] and [SEP] counted.
SHORTEST, LONGEST = 8, 17

Work = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """One level's block of images and captions.

    Attributes:
        level: From 1.
        hidden: float32 [images, regions, width]: stage outputs, or features for t2i and level 3.
        full: float32 [images, regions, d]: projected features.
        words: float32 [captions, words, d].
        lengths: int64 [captions].
        captions: Prepared for the kernel.
    """

    level: int
    hidden: np.ndarray
    full: np.ndarray
    words: np.ndarray
    lengths: np.ndarray
    captions: alignment_cpu.LevelCaptions

    @property
    def multiplications(self) -> int:
        """Of the dot products in the reduced width."""
        _, regions, width = self.hidden.shape
        return int(len(self.hidden) * regions * width * self.lengths.sum())


@dataclass(frozen=True)
class LevelTimes:
    """Seconds a round of each competitor at one level, without waits for a core.

    Attributes:
        workload: What was scored.
        formula_captions: How many of its captions the formula scored.
        seconds: Per competitor (``kernel``, ``formula``, else a matrix product), every round.
    """

    workload: Workload
    formula_captions: int
    seconds: Mapping[str, tuple[float, ...]]

    @property
    def best_product(self) -> str:
        """The fastest matrix product."""
        names = [name for name in self.seconds if name not in ("kernel", "formula")]
        return min(names, key=lambda name: statistics.median(self.seconds[name]))

    def per_pair(self, name: str) -> list[float]:
        """Milliseconds a pair of image and caption, round by round; empty if not measured."""
        captions = self.formula_captions if name == "formula" else len(self.workload.lengths)
        pairs = len(self.workload.hidden) * captions
        return [1e3 * value / pairs for value in self.seconds.get(name, ())]


def make_workload(
    spec: ModelSpec, level: int, images: int, captions: int, random: np.random.Generator
) -> Workload:
    """Random features of a level's shapes; i2t in the reduced form where it is narrower."""
    regions, width = spec.level_regions[level - 1], spec.level_widths[level - 1]
    reduced = spec.direction == "i2t" and width < spec.dim
    lengths = random.integers(SHORTEST, LONGEST + 1, captions)
    words = random.standard_normal((captions, int(lengths.max()), spec.dim), np.float32)
    hidden = random.standard_normal((images, regions, width if reduced else spec.dim), np.float32)
    if not reduced:
        prepared = alignment_cpu.prepare_captions(words, lengths)
        return Workload(level, hidden, hidden, words, lengths, prepared)
    weight = random.standard_normal((spec.dim, width), np.float32) / np.float32(width**0.5)
    bias = random.standard_normal(spec.dim, np.float32)
    prepared = alignment_cpu.prepare_captions(words, lengths, weight, bias)
    return Workload(level, hidden, hidden @ weight.T + bias, words, lengths, prepared)


def time_level(
    spec: ModelSpec,
    workload: Workload,
    threads: int,
    path: KernelPath,
    rounds: int,
    formula_captions: int,
    with_torch: bool,
) -> LevelTimes:
    """Time every competitor on one workload, in turn.

    Args:
        spec: Direction and lambda.
        workload: From :func:`make_workload`.
        threads: Of the kernel and of every BLAS.
        path: Instruction set of the kernel.
        rounds: How often each is called.
        formula_captions: Captions that the formula scores; its time a pair doesn't depend on it.
        with_torch: Whether PyTorch is there to be measured.
    """
    norms = alignment_cpu.region_norms(workload.full)
    kernel = partial(
        alignment_cpu.score,
        workload.hidden,
        norms,
        workload.captions,
        spec.softmax_lambda,
        spec.direction,
        threads,
        path,
    )
    flat = workload.hidden.reshape(-1, workload.hidden.shape[2])
    step = max(1, COLUMNS_PER_GROUP // workload.hidden.shape[1]) * workload.hidden.shape[1]
    groups = [slice(start, start + step) for start in range(0, len(flat), step)]
    works: dict[str, Work] = {"kernel": kernel}
    works |= _numpy_products(workload.captions.words, flat, groups)
    few = min(formula_captions, len(workload.lengths))
    if with_torch:
        works |= _torch_products(workload.captions.words, flat, groups, threads)
        works["formula"] = partial(_formula, spec, *_tensors(workload, few))
    found = Timer().in_turn(works, rounds)
    return LevelTimes(
        workload, few, {name: tuple(call.own for call in calls) for name, calls in found.items()}
    )


def scoring_report(
    times: list[LevelTimes],
    spec: ModelSpec,
    path: KernelPath,
    threads: int,
    environment: Mapping[str, Any],
) -> Report:
    """The report of a run over all levels."""
    rows, data = [], []
    everything: dict[str, list[float]] = {}
    for level in times:
        found = {
            "kernel": level.per_pair("kernel"),
            "product": level.per_pair(level.best_product),
            "formula": level.per_pair("formula"),
        }
        for name, values in found.items():
            before = everything.setdefault(name, [0.0] * len(values))
            everything[name] = [a + b for a, b in zip(before, values, strict=True)]
        shape = level.workload.hidden.shape
        pairs = len(level.workload.hidden) * len(level.workload.lengths)
        work = 2e-6 * level.workload.multiplications / pairs
        cells, numbers = _row(found, work)
        rows.append((f"level {level.workload.level}", f"{shape[1]} x {shape[2]}", *cells))
        data.append({"level": level.workload.level, "best_product": level.best_product, **numbers})
    workload = times[0].workload
    pairs = len(workload.hidden) * len(workload.lengths)
    work = 2e-6 * sum(level.workload.multiplications for level in times) / pairs
    cells, numbers = _row(everything, work)
    rows.append(("all levels", "", *cells))
    data.append({"level": "all", **numbers})
    columns = (
        *("", "regions x width", "kernel ms/pair", "GFLOP/s", "best sgemm ms/pair"),
        *("share of sgemm", "PyTorch ms/pair", "times faster"),
    )
    words = float(workload.lengths.mean())
    note = (
        f"{spec.direction}, {threads} threads, path {path}; {len(workload.hidden)} images x "
        f"{len(workload.lengths)} captions of {words:.1f} words; medians of "
        f"{len(times[0].seconds['kernel'])} rounds. sgemm: a bare product of the same reduced "
        f"shapes ({', '.join(dict.fromkeys(level.best_product for level in times))}). PyTorch: "
        "the score as published, at full width. GFLOP/s count the dot products only."
    )
    table = Table("Scoring", columns, tuple(rows), note)
    summary = (
        f"One pair takes {numbers['kernel_ms']:.4f} ms over all levels: "
        f"{numbers['share_of_product']:.2f} of the speed of a bare matrix product"
        + (f", {numbers['factor']:.0f} times the published formula's." if cells[5] else "."),
    )
    content = {
        "levels": data,
        "threads": threads,
        "path": path,
        "direction": spec.direction,
        "spec": spec.name,
        "environment": dict(environment),
    }
    return Report("scoring", f"Scoring kernel: {spec.name}", None, summary, (table,), content)


def _row(times: Mapping[str, list[float]], work: float) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Cells and numbers of one line; ``work`` in millions of floating point operations a pair."""
    kernel, product = (statistics.median(times[name]) for name in ("kernel", "product"))
    share = statistics.median(p / k for p, k in zip(times["product"], times["kernel"], strict=True))
    numbers: dict[str, Any] = {
        "kernel_ms": kernel,
        "gflops": work / kernel,
        "product_ms": product,
        "share_of_product": share,
        "formula_ms": None,
        "factor": None,
    }
    cells = [f"{kernel:.4f}", f"{work / kernel:.0f}", f"{product:.4f}", f"{share:.2f}"]
    if not times["formula"]:
        return (*cells, "not measured", ""), numbers
    formula = statistics.median(times["formula"])
    factor = statistics.median(
        f / k for f, k in zip(times["formula"], times["kernel"], strict=True)
    )
    numbers |= {"formula_ms": formula, "factor": factor}
    return (*cells, f"{formula:.3f}", f"{factor:.0f}"), numbers


def _numpy_products(words: np.ndarray, flat: np.ndarray, groups: list[slice]) -> dict[str, Work]:
    whole = np.empty((len(words), len(flat)), np.float32)

    def grouped() -> None:
        for group in groups:
            part = flat[group]
            np.matmul(words, part.T, out=whole[:, : len(part)])

    return {
        "OpenBLAS": partial(np.matmul, words, flat.T, out=whole),
        "OpenBLAS, grouped": grouped,
    }


def _torch_products(
    words: np.ndarray, flat: np.ndarray, groups: list[slice], threads: int
) -> dict[str, Work]:
    import torch

    torch.set_num_threads(threads)
    left, right = torch.from_numpy(words), torch.from_numpy(flat)
    whole = torch.empty(len(words), len(flat))
    blocked = left.to_mkldnn()

    def mkl() -> None:
        for group in groups:
            part = right[group]
            torch.mm(left, part.t(), out=whole[:, : len(part)])

    def one_dnn() -> None:
        for group in groups:
            torch.nn.functional.linear(blocked, right[group])

    return {
        "MKL": partial(torch.mm, left, right.t(), out=whole),
        "MKL, grouped": mkl,
        "oneDNN": partial(torch.nn.functional.linear, blocked, right),
        "oneDNN, grouped": one_dnn,
    }


def _tensors(workload: Workload, few: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    import torch

    words = torch.from_numpy(workload.words[:few])
    return torch.from_numpy(workload.full), words, workload.lengths[:few].tolist()


def _formula(
    spec: ModelSpec, regions: torch.Tensor, words: torch.Tensor, lengths: list[int]
) -> torch.Tensor:
    """The score as published: attended vectors formed, captions one by one."""
    import torch

    columns = []
    for caption, length in zip(words, lengths, strict=True):
        real = caption[:length].expand(len(regions), -1, -1)
        dots = torch.nn.functional.leaky_relu(real @ regions.transpose(1, 2), 0.1)
        normed, asked = (2, 1) if spec.direction == "i2t" else (1, 2)
        dots = dots / (dots.square().sum(normed, keepdim=True).sqrt() + 1e-8)
        attention = (spec.softmax_lambda * dots).softmax(asked)
        if spec.direction == "i2t":
            asking, attended = regions, attention.transpose(1, 2) @ real
        else:
            asking, attended = real, attention @ regions
        size = asking.norm(dim=2) * attended.norm(dim=2)
        columns.append(((asking * attended).sum(2) / size.clamp_min(1e-8)).mean(1))
    return torch.stack(columns, 1)
