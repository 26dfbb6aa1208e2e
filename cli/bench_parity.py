"""``hat-bench parity``: does it retrieve the same?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import (
    BackendOption,
    QuietOption,
    ReportOption,
    SpecOption,
    VocabularyOption,
)


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
