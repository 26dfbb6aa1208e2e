"""Times the Triton alignment kernel against PyTorch, eager and compiled, and against the bound.

Per level, in turn and over and over: the kernel in its reduced form (regions as the encoder
stage gives them, captions prepared beforehand), the model's own score
(hat_export.model.alignment, full width) eager and through torch.compile. The kernel's scores are
checked against float64 before anything is timed. Times are CUDA events' medians over the rounds,
with the 10 % and 90 % quantiles.

The bound is the larger of what the dot products take at the device's matrix rate, which is
measured here by a large torch product of the same type, and what reading every input once and
writing the scores takes at the bandwidth that a large copy reaches. The kernel computes the dot
products twice where a level's regions don't fit into one tile, so that it can't get beyond half
of the bound there.

    python bench/scoring_gpu.py --dtype fp16
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

# (regions, width of the dot product) of the three levels, and the full width.
LEVELS = ((784, 256), (196, 512), (49, 768))
DIM = 768
SOFTMAX_LAMBDA = 9.0
SEED = 20230807
#: Pairs whose scores are checked before the timing.
CHECKED = 4
#: A score of inputs rounded to 8 bits, and of the words' projection rounded once more, against
#: float64: the scores' own spread here is 1e-2. The tests hold the kernel to tighter bounds.
TOLERANCE = {"fp16": 1e-4, "bf16": 1e-3, "fp32": 4e-6}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--dtype", default="fp16", choices=tuple(TOLERANCE))
    parser.add_argument("--image-count", type=int, default=64)
    parser.add_argument("--caption-count", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()

    import torch
    from torch import Tensor

    if not torch.cuda.is_available():
        sys.exit("scoring_gpu: no CUDA device; bench/scoring_kernel.py measures the CPU kernel")

    from hat_export.errors import HatError
    from hat_export.kernels import alignment_torch
    from hat_export.model.alignment import level_scores

    try:
        import triton
    except ImportError:
        sys.exit("scoring_gpu: Triton can't be imported; install triton as your torch asks for it")

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = dtypes[arguments.dtype]

    def milliseconds(work: Callable[[], object]) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def median_of(work: Callable[[], object]) -> float:
        for _ in range(3):
            work()
        return statistics.median(milliseconds(work) for _ in range(arguments.rounds))

    size = 8192
    square = torch.randn(size, size, device="cuda", dtype=dtype)
    # Operations and bytes a millisecond.
    rate = 2 * size**3 / median_of(lambda: square @ square)
    large = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(large)
    bandwidth = 2 * large.numel() / median_of(lambda: target.copy_(large))
    del square, large, target

    generator = torch.Generator("cuda").manual_seed(SEED)
    images, captions = arguments.image_count, arguments.caption_count
    # As Flickr30K's, [CLS] and [SEP] counted.
    lengths = torch.randint(8, 18, (captions,), generator=generator, device="cuda")
    longest = int(lengths.max())
    total_words = int(lengths.sum())
    mask = torch.arange(longest, device="cuda") < lengths[:, None]
    compiled = torch.compile(level_scores)
    properties = torch.cuda.get_device_properties(0)
    print(
        f"{properties.name}, compute capability {properties.major}.{properties.minor}, CUDA "
        f"{torch.version.cuda}, torch {torch.__version__}, triton {triton.__version__}, "
        f"{arguments.dtype}, {images} images x {captions} captions "
        f"({total_words / captions:.1f} words each), median of {arguments.rounds} rounds "
        f"(10 %, 90 %)"
    )
    print(f"measured: {rate / 1e9:.0f} TFLOP/s of products, {bandwidth / 1e6:.0f} GB/s of copies")
    print()
    print(
        "| level | regions x width | kernel ms | eager ms | compiled ms | bound ms | "
        "kernel's share of the bound | eager / kernel | compiled / kernel |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for level, (count, width) in enumerate(LEVELS, 1):

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device="cuda")

        words = normal(captions, longest, DIM)
        hidden = normal(images, count, width).to(dtype)
        projection = bias = None
        full = hidden
        if width < DIM:
            projection, bias = normal(DIM, width) / width**0.5, normal(DIM)
            full = (hidden.float() @ projection.T + bias).to(dtype)
        norms = alignment_torch.region_norms(full)
        try:
            prepared = alignment_torch.prepare_captions(words, lengths, dtype, projection, bias)
            scores = alignment_torch.score(hidden, norms, prepared, SOFTMAX_LAMBDA)
        except HatError as error:
            sys.exit(f"scoring_gpu: {error}")
        wide = hidden[:CHECKED].double()
        if projection is not None and bias is not None:
            wide = wide @ projection.double().T + bias.double()
        exact = level_scores(wide, words[:CHECKED].double(), mask[:CHECKED], SOFTMAX_LAMBDA)
        error = float((scores[:CHECKED, :CHECKED] - exact).abs().max())
        if error > TOLERANCE[arguments.dtype]:
            sys.exit(f"scoring_gpu: level {level} is off by {error:.1e}: nothing was timed")

        narrow = words.to(dtype)
        works: tuple[Callable[[], object], ...] = (
            lambda h=hidden, n=norms, p=prepared: alignment_torch.score(h, n, p, SOFTMAX_LAMBDA),
            lambda x=full, c=narrow: level_scores(x, c, mask, SOFTMAX_LAMBDA),
            lambda x=full, c=narrow: compiled(x, c, mask, SOFTMAX_LAMBDA),
        )
        times: list[list[float]] = [[] for _ in works]
        with torch.inference_mode():
            for work in works:
                for _ in range(3):
                    work()
            for _ in range(arguments.rounds):
                for row, work in zip(times, works, strict=True):
                    row.append(milliseconds(work))
        operations = 2 * images * count * total_words * width
        read = hidden.nbytes + norms.nbytes + prepared.words.nbytes + prepared.factor.nbytes
        bound = max(operations / rate, (read + scores.nbytes) / bandwidth)
        middle = [statistics.median(row) for row in times]
        cells = []
        for row in times:
            deciles = statistics.quantiles(row, n=10)
            cells.append(f"{statistics.median(row):.3f} ({deciles[0]:.3f}, {deciles[-1]:.3f})")
        print(
            f"| {level} | {count} x {width} | {' | '.join(cells)} | {bound:.3f} "
            f"| {bound / middle[0]:.2f} | {middle[1] / middle[0]:.1f} "
            f"| {middle[2] / middle[0]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
