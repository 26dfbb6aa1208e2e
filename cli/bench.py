"""``hat-bench``: does it retrieve the same, and how fast is it?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.export import QuietOption, SpecOption, VocabularyOption

app = typer.Typer(
    help="Check recall parity and measure latency.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Direction(StrEnum):
    """Which side asks in the score."""

    i2t = "i2t"
    t2i = "t2i"


class KernelChoice(StrEnum):
    """Instruction sets that the kernel may have."""

    auto = "auto"
    scalar = "scalar"
    avx2 = "avx2"
    avx512 = "avx512"
    neon = "neon"


BackendOption = Annotated[str, typer.Option("--backend", help="What runs bundles.")]
ReportOption = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Write a report: .json, .md or .html; may be repeated."),
]


@app.callback()
def program() -> None:
    """Check recall parity and measure latency."""


@app.command()
def parity(
    reference: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    candidate: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    data: Annotated[Path, typer.Option(help="Karpathy-format JSON, or the folder that holds one.")],
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="Folder or zip of images; default: beside the JSON."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    captions: Annotated[
        int, typer.Option(min=1, help="Captions per image; the official protocol takes 5.")
    ] = 5,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only so many images, evenly spread.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(min=2, help="Show the mean over so many folds too (COCO 1K: 5)."),
    ] = None,
    max_drop: Annotated[
        str, typer.Option(help="Budget in points, e.g. r1=0.2,rsum=0.5.")
    ] = "r1=0.2,r5=0.2,r10=0.2,rsum=0.5",
    batch: Annotated[int, typer.Option(min=1, help="Images or captions at a time.")] = 50,
    backend: BackendOption = "onnxruntime",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Compare recall@K of two models on a dataset; exit status 1 if recall drops too far."""
    from hat_export.dataset import read_karpathy
    from hat_export.environment import environment
    from hat_export.errors import InputError
    from hat_export.evaluate import score_dataset
    from hat_export.parity import compare, parity_report, parse_budget
    from hat_export.retrieval import fold_mean

    budget = parse_budget(max_drop)
    common.check_report_paths(report)
    dataset = read_karpathy(data, split, images or ()).take(captions).limit(limit)
    if folds and len(dataset.entries) % folds:
        raise InputError(f"--folds {folds} does not divide {len(dataset.entries)} images")
    progress = common.Progress(quiet)
    architecture = common.read_spec(spec)
    scores, names = [], []
    for target in (reference, candidate):
        progress.step(f"scoring with {target}")
        with common.open_target(target, backend, threads, architecture, vocabulary) as session:
            scores.append(score_dataset(session, dataset, batch, progress.count))
            names.append(f"{target.name} ({session.backend})")
    averages = None
    if folds:
        before, after = (fold_mean(part, dataset.owners, folds) for part in scores)
        averages = (folds, before, after)
    result = parity_report(
        compare(scores[0], scores[1], dataset.owners),
        (names[0], names[1]),
        dataset.name,
        budget,
        environment(),
        averages,
    )
    common.deliver(result, report)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def latency(
    targets: Annotated[
        list[Path], typer.Argument(help="Checkpoints (PyTorch) and bundles, the baseline first.")
    ],
    image_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Images per call; may be repeated [1, 8].")
    ] = None,
    text_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Captions per call; may be repeated [1, 32].")
    ] = None,
    words: Annotated[int, typer.Option(min=2, help="Word pieces per caption.")] = 16,
    score_size: Annotated[
        list[str] | None,
        typer.Option(help="IMAGESxCAPTIONS per call; may be repeated [8x32, 50x200]."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads; may be repeated; default: one per core."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time per case.")] = 2.0,
    calls: Annotated[int, typer.Option(min=1, help="Fewest counted calls per case.")] = 10,
    backend: BackendOption = "onnxruntime",
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time image encoder, text encoder and scoring of several targets in turn, in one run."""
    from contextlib import ExitStack
    from itertools import zip_longest

    from hat_export.environment import default_threads, environment
    from hat_export.latency import cases_of, latency_report, measure

    sizes = [parse_score_size(text) for text in score_size or ["8x32", "50x200"]]
    common.check_report_paths(report)
    architecture = common.read_spec(spec)
    progress = common.Progress(quiet)
    timings = []
    for count in threads or [default_threads()]:
        with ExitStack() as stack:
            cases = []
            for target in targets:
                progress.step(f"opening {target} with {count} threads")
                opened = common.open_target(target, backend, count, architecture, vocabulary)
                session = stack.enter_context(opened)
                name = f"{target.name} ({session.backend})"
                batches = (image_batch or [1, 8], text_batch or [1, 32])
                cases.append(cases_of(name, session, *batches, words, sizes))
            groups = [[case for case in group if case is not None] for group in zip_longest(*cases)]
            timings += measure(groups, seconds, calls, progress.count)
    result = latency_report(timings, words, environment())
    common.deliver(result, report)


@app.command()
def scoring(
    spec: SpecOption = None,
    direction: Annotated[
        Direction | None, typer.Option(help="Score direction; default: the spec's.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Images per call.")] = 16,
    captions: Annotated[int, typer.Option(min=1, help="Captions per call.")] = 320,
    rounds: Annotated[int, typer.Option(min=1, help="Calls of each competitor.")] = 7,
    formula_captions: Annotated[
        int, typer.Option(min=1, help="Captions that the published formula scores a call.")
    ] = 8,
    path: Annotated[
        KernelChoice, typer.Option(help="Instruction set of the kernel; auto: the best there is.")
    ] = KernelChoice.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time the scoring kernel beside a bare matrix product and the published formula."""
    import importlib.util
    import os
    from dataclasses import replace

    from hat_export.environment import default_threads, environment

    count = threads or default_threads()
    # OpenBLAS reads this when numpy is imported, which so far nobody has done.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    import numpy as np

    from hat_export.kernels.alignment_cpu import resolve_path
    from hat_export.scoring_benchmark import make_workload, scoring_report, time_level
    from hat_export.spec import LEVELS, OFFICIAL

    common.check_report_paths(report)
    architecture = common.read_spec(spec) or OFFICIAL
    if direction:
        architecture = replace(architecture, direction="i2t" if direction == "i2t" else "t2i")
    chosen = resolve_path(path.value)
    progress = common.Progress(quiet)
    random = np.random.default_rng(0)
    with_torch = importlib.util.find_spec("torch") is not None
    times = []
    for level in range(1, LEVELS + 1):
        workload = make_workload(architecture, level, images, captions, random)
        times.append(
            time_level(architecture, workload, count, chosen, rounds, formula_captions, with_torch)
        )
        progress.count("levels timed", level, LEVELS)
    result = scoring_report(times, architecture, chosen, count, environment())
    common.deliver(result, report)


@app.command()
def search(
    target: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    data: Annotated[Path, typer.Option(help="Karpathy-format JSON, or the folder that holds one.")],
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", help="Folder or zip of images; default: beside the JSON."),
    ] = None,
    split: Annotated[str, typer.Option(help="Split that is searched.")] = "test",
    calibration_split: Annotated[
        str, typer.Option(help="Split that chooses the number of candidates.")
    ] = "val",
    recall_target: Annotated[
        float, typer.Option(min=0, help="Points of recall@K that may be lost, at most.")
    ] = 0.1,
    candidates: Annotated[
        list[str] | None,
        typer.Option(help="How candidates are found: pooled, level3; default: both."),
    ] = None,
    storage: Annotated[str, typer.Option(help="Precision of the index.")] = "float16",
    queries: Annotated[int, typer.Option(min=1, help="Captions to time.")] = 200,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only so many images of a split.")
    ] = None,
    backend: BackendOption = "onnxruntime",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: one per core.")] = None,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Choose the number of candidates of two-stage search, and show recall and latency."""
    import tempfile

    from hat_export.dataset import read_karpathy
    from hat_export.environment import environment
    from hat_export.search import CANDIDATES, candidate_source
    from hat_export.search_benchmark import index_split, run, search_report

    common.check_report_paths(report)
    kinds = candidates or list(CANDIDATES)
    for kind in kinds:
        candidate_source(kind)
    names = (calibration_split, split)
    datasets = [read_karpathy(data, name, images or ()).limit(limit) for name in names]
    architecture = common.read_spec(spec)
    progress = common.Progress(quiet)
    with (
        common.open_target(target, backend, threads, architecture, vocabulary) as session,
        tempfile.TemporaryDirectory() as folder,
    ):
        splits = [
            index_split(
                session, dataset, Path(folder) / f"{number}.hatidx", storage, progress.count
            )
            for number, dataset in enumerate(datasets)
        ]
        results = {
            kind: run(session, splits[0], splits[1], kind, recall_target, queries) for kind in kinds
        }
        for indexed in splits:
            indexed.index.close()
    result = search_report(
        results, recall_target, (datasets[0].name, datasets[1].name), environment()
    )
    common.deliver(result, report)


def parse_score_size(text: str) -> tuple[int, int]:
    """``8x32`` as (images, captions).

    Raises:
        InputError: if it doesn't read so.
    """
    from hat_export.errors import InputError

    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--score-size {text}: expected IMAGESxCAPTIONS, for example 8x32")
    return int(parts[0]), int(parts[1])


def main() -> None:
    """Console script ``hat-bench``."""
    common.run(app, "hat-bench")


if __name__ == "__main__":
    main()
