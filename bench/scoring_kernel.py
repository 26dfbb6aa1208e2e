"""Times the CPU alignment kernel against bare matrix products and the formula in PyTorch.

Per level, in turn and over and over, so that whatever else the machine does falls on all alike:
the kernel in its reduced form; a bare float32 matrix product of the same reduced shapes by torch
(MKL), by oneDNN and by numpy (OpenBLAS), each as one product and image group by image group, of
which the fastest of a level counts; and the score as the paper writes it in PyTorch, batched over
images, captions one by one. Times are medians over the rounds; shares and factors are medians of
the per-round ratios.

    python bench/scoring_kernel.py --threads 2
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

# (regions, width of the dot product) of the three levels, and the full width.
LEVELS = ((784, 256), (196, 512), (49, 768))
DIM = 768
SOFTMAX_LAMBDA = 9.0
COLUMNS_PER_GROUP = 784
SEED = 20230807


def processor() -> str:
    """Name of the CPU, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def seconds(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time of one call."""
    start = clock()
    work()
    return clock() - start


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--captions", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--formula-captions",
        type=int,
        default=8,
        help="captions that the PyTorch formula scores; its time a pair doesn't depend on it",
    )
    parser.add_argument("--path", default="auto", help="auto, scalar, avx2, avx512 or neon")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=("wall", "cpu"),
        help="cpu: the process's CPU time, for a fair look at one thread on a busy machine",
    )
    parser.add_argument("--direction", default="i2t", choices=("i2t", "t2i"))
    arguments = parser.parse_args()

    # OpenBLAS reads this when numpy is imported, so that the imports have to wait.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(arguments.threads)
    import numpy as np
    import torch

    from hat_export.kernels import alignment_cpu

    torch.set_num_threads(arguments.threads)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    random = np.random.default_rng(SEED)
    images, captions = arguments.images, arguments.captions
    lengths = random.integers(8, 18, captions)  # as Flickr30K's, [CLS] and [SEP] counted
    few = min(arguments.formula_captions, captions)
    path = alignment_cpu.resolve_path(arguments.path)
    total_words = int(lengths.sum())

    def formula(regions: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """The i2t score of [images, regions, d] with [captions, words, d], word for word."""
        columns = []
        for caption, length in zip(words[:few], lengths[:few], strict=True):
            real = caption[: int(length)].expand(len(regions), -1, -1)
            dots = torch.nn.functional.leaky_relu(real @ regions.transpose(1, 2), 0.1)
            dots = dots / (dots.square().sum(2, keepdim=True).sqrt() + 1e-8)
            attention = (SOFTMAX_LAMBDA * dots).softmax(1)
            attended = attention.transpose(1, 2) @ real
            inner = (regions * attended).sum(2)
            size = regions.norm(dim=2) * attended.norm(dim=2)
            columns.append((inner / size.clamp_min(1e-8)).mean(1))
        return torch.stack(columns, 1)

    print(
        f"{processor()}, {platform.system()} {platform.machine()}, {arguments.threads} threads, "
        f"path {path}, {arguments.direction}, {images} images x {captions} captions "
        f"({total_words / captions:.1f} words each), load average at start "
        f"{os.getloadavg()[0]:.1f}"
    )
    print(
        f"torch {torch.__version__}, numpy {np.__version__}, {arguments.clock} time, "
        f"median of {arguments.rounds} rounds"
    )
    print()
    print(
        "| level | regions x width | kernel ms/pair | GFLOP/s | best sgemm ms/pair | GFLOP/s | "
        "share of sgemm | PyTorch formula ms/pair | factor |"
    )
    print("|---|---|---|---|---|---|---|---|---|")

    products = ("MKL", "MKL grouped", "oneDNN", "oneDNN grouped", "OpenBLAS", "OpenBLAS grouped")
    names = ("kernel", *products, "formula")
    whole: dict[str, list[float]] = {name: [0.0] * arguments.rounds for name in ("k", "g", "f")}
    winners = []
    for level, (count, width) in enumerate(LEVELS, 1):
        if arguments.direction == "t2i":
            width = DIM
        longest = int(lengths.max())
        words = random.standard_normal((captions, longest, DIM), np.float32)
        hidden = random.standard_normal((images, count, width), np.float32)
        if width == DIM:
            full = hidden
            prepared = alignment_cpu.prepare_captions(words, lengths)
        else:
            weight = random.standard_normal((DIM, width), np.float32) / np.float32(width**0.5)
            bias = random.standard_normal(DIM, np.float32)
            full = hidden @ weight.T + bias
            prepared = alignment_cpu.prepare_captions(words, lengths, weight, bias)
        norms = alignment_cpu.region_norms(full)
        flat = hidden.reshape(images * count, width)
        whole_out = np.empty((total_words, images * count), np.float32)
        step = min(COLUMNS_PER_GROUP // count * count, images * count)
        groups = [slice(i, i + step) for i in range(0, images * count, step)]
        group_out = np.empty((total_words, step), np.float32)
        torch_words, torch_flat = torch.from_numpy(prepared.words), torch.from_numpy(flat)
        torch_whole, torch_group = torch.from_numpy(whole_out), torch.from_numpy(group_out)
        torch_full, torch_caption = torch.from_numpy(full), torch.from_numpy(words)

        def kernel(
            hidden: np.ndarray = hidden,
            norms: np.ndarray = norms,
            prepared: alignment_cpu.LevelCaptions = prepared,
        ) -> None:
            alignment_cpu.score(
                hidden, norms, prepared, SOFTMAX_LAMBDA, arguments.direction, arguments.threads,
                path,
            )  # fmt: skip

        def torch_grouped(
            words: torch.Tensor = torch_words,
            flat: torch.Tensor = torch_flat,
            out: torch.Tensor = torch_group,
            groups: list[slice] = groups,
        ) -> None:
            for group in groups:
                part = flat[group]
                torch.mm(words, part.t(), out=out[:, : len(part)])

        dnn_words = torch_words.to_mkldnn()

        def dnn_grouped(
            words: torch.Tensor = dnn_words,
            flat: torch.Tensor = torch_flat,
            groups: list[slice] = groups,
        ) -> None:
            for group in groups:
                torch.nn.functional.linear(words, flat[group])

        def numpy_grouped(
            words: np.ndarray = prepared.words,
            flat: np.ndarray = flat,
            out: np.ndarray = group_out,
            groups: list[slice] = groups,
        ) -> None:
            for group in groups:
                part = flat[group]
                np.matmul(words, part.T, out=out[:, : len(part)])

        works: tuple[Callable[[], object], ...] = (
            kernel,
            partial(torch.mm, torch_words, torch_flat.t(), out=torch_whole),
            torch_grouped,
            partial(torch.nn.functional.linear, dnn_words, torch_flat),
            dnn_grouped,
            partial(np.matmul, prepared.words, flat.T, out=whole_out),
            numpy_grouped,
            partial(formula, torch_full, torch_caption),
        )
        for work in works:
            work()
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name, work in zip(names, works, strict=True):
                times[name].append(seconds(work, clock))
        best = min(products, key=lambda name: statistics.median(times[name]))
        winners.append(best)
        pairs = images * captions
        kernel_ms = [1e3 * t / pairs for t in times["kernel"]]
        gemm_ms = [1e3 * t / pairs for t in times[best]]
        formula_ms = [1e3 * t / (images * few) for t in times["formula"]]
        for key, values in (("k", kernel_ms), ("g", gemm_ms), ("f", formula_ms)):
            whole[key] = [a + b for a, b in zip(whole[key], values, strict=True)]
        gflop = 2e-9 * total_words / captions * count * width
        _row(str(level), f"{count} x {width}", gflop, kernel_ms, gemm_ms, formula_ms)
    gflop = (
        2e-9
        * total_words
        / captions
        * sum(r * (DIM if arguments.direction == "t2i" else k) for r, k in LEVELS)
    )
    _row("all", "", gflop, whole["k"], whole["g"], whole["f"])
    print()
    print(f"best sgemm per level: {', '.join(winners)}; GFLOP/s count the dot products only")


def _row(
    level: str,
    shape: str,
    gflop: float,
    kernel: list[float],
    gemm: list[float],
    formula: list[float],
) -> None:
    """Prints one line of the table; times in ms a pair, one entry per round."""
    share = statistics.median(g / k for g, k in zip(gemm, kernel, strict=True))
    factor = statistics.median(f / k for f, k in zip(formula, kernel, strict=True))
    k, g, f = (statistics.median(values) for values in (kernel, gemm, formula))
    print(
        f"| {level} | {shape} | {k:.4f} | {1e3 * gflop / k:.0f} | {g:.4f} | {1e3 * gflop / g:.0f} "
        f"| {share:.2f} | {f:.3f} | {factor:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
