"""``hat-bench parity``: does it retrieve the same, and if not, who lost it?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import (
    AddressOption,
    BackendOption,
    DataOption,
    Engine,
    EngineOption,
    ImagesOption,
    LimitOption,
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
    WorkersOption,
)

#: Exit status where the budget could not be judged.
UNDECIDED = 2


def parity(
    reference: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    candidate: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    data: DataOption,
    images: ImagesOption = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    captions: Annotated[
        int, typer.Option(min=1, help="Captions per image; the official protocol takes 5.")
    ] = 5,
    limit: LimitOption = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2, help="Show the mean over so many folds too; default: 5 for COCO's 5,000 images."
        ),
    ] = None,
    max_drop: Annotated[
        str, typer.Option(help="Budget in points, e.g. r1=0.2,rsum=0.5 or i2t_r1=0.1.")
    ] = "r1=0.2,r5=0.2,r10=0.2,rsum=0.5",
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Fail unless the interval's worst end keeps the budget."),
    ] = False,
    attribution: Annotated[
        bool | None,
        typer.Option(
            "--attribution/--no-attribution",
            help="Swap components to name the one that lost recall; default: if a rank changed "
            "beyond ties.",
            show_default=False,
        ),
    ] = None,
    localize: Annotated[
        bool,
        typer.Option(
            "--localize", help="Compare the graphs layer by layer and name the first that is wrong."
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where features and scores are kept for the next run; default: "
            "~/.cache/hat-export, or $HAT_EXPORT_CACHE.",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Keep nothing: an interrupted run starts anew.")
    ] = False,
    gallery: Annotated[
        int, typer.Option(min=0, help="Changed queries shown with pictures in the HTML report.")
    ] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Images or captions at a time.")] = 50,
    backend: BackendOption = "onnxruntime",
    reference_backend: Annotated[
        str | None,
        typer.Option(help="What runs the reference if it is a bundle; default: as --backend."),
    ] = None,
    threads: ThreadsOption = None,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = 2,
    address: AddressOption = None,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Gate a model on recall@K: exit status 0 passed, 1 failed, 2 could not judge.

    With --engine ray, workers of --threads threads each, one if not given, encode and score;
    models, data and --cache must be under the same paths on every machine.
    """
    from hat_export.base.machine import default_cache
    from hat_export.bundle.reproduce import write_reproduction
    from hat_export.data.readers import read_dataset
    from hat_export.parity.budget import Verdict, parse_budget
    from hat_export.parity.outcome import ParitySettings, Side
    from hat_export.parity.report import parity_report
    from hat_export.parity.run import run_parity

    common.require_signature(require_signature, reference, candidate)
    settings = ParitySettings(
        budget=parse_budget(max_drop),
        strict=strict,
        cache=None if no_cache else cache or default_cache(),
        folds=folds,
        batch=batch,
        attribution=attribution,
        localize=localize,
        gallery=gallery,
        threads=threads,
        ray=common.ray_workers(engine, workers, threads, address),
    )
    common.check_report_paths(report)
    dataset = read_dataset(data, split, images or ()).take(captions).limit(limit)
    architecture = common.read_spec(spec)
    progress = common.progress(quiet)
    first, second = (
        Side.of(target, name, architecture, vocabulary)
        for target, name in ((reference, reference_backend or backend), (candidate, backend))
    )
    outcome = run_parity(first, second, dataset, settings, progress)
    common.deliver(parity_report(outcome), report)
    for folder in {path.parent: path for path in report or []}.values():
        write_reproduction(
            folder,
            ["hat-bench", *sys.argv[1:]],
            {"reference": reference, "candidate": candidate, "data": data},
            Path.cwd(),
        )
    status = {Verdict.passed: 0, Verdict.failed: 1, Verdict.undecided: UNDECIDED}
    if not outcome.passed:
        raise typer.Exit(status[outcome.verdict])
