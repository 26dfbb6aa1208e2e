"""``hat-bench parity``: does it retrieve the same, and if not, who lost it?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    AddressOption,
    BackendOption,
    DataOption,
    Engine,
    EngineOption,
    ImagesOption,
    LimitOption,
    Panel,
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
    WorkersOption,
    option,
    own_option,
)

#: Exit status where the budget could not be judged.
UNDECIDED = 2


def parity_command(
    reference: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    candidate: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    data: DataOption,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    backend: BackendOption = "onnxruntime",
    images: ImagesOption = None,
    split: Annotated[str, option("--split")] = "test",
    limit: LimitOption = None,
    max_drop: Annotated[str, option("--max-drop")] = "r1=0.2,r5=0.2,r10=0.2,rsum=0.5",
    report: ReportOption = None,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    strict: Annotated[
        bool,
        own_option(
            "--strict", Panel.advanced, "Fail unless the interval's worst end keeps the budget."
        ),
    ] = False,
    attribution: Annotated[
        bool | None,
        own_option(
            "--attribution/--no-attribution",
            Panel.advanced,
            "Swap components to name the one that lost recall; default: if a rank changed beyond "
            "ties.",
            show_default=False,
        ),
    ] = None,
    localize: Annotated[
        bool,
        own_option(
            "--localize",
            Panel.advanced,
            "Compare the graphs layer by layer and name the first that is wrong.",
        ),
    ] = False,
    captions_per_image: Annotated[
        int,
        own_option(
            "--captions-per-image",
            Panel.advanced,
            "Captions of an image that are used; the official protocol takes 5.",
            least=1,
        ),
    ] = 5,
    folds: Annotated[
        int | None,
        own_option(
            "--folds",
            Panel.advanced,
            "Show the mean over so many folds too; default: 5 for COCO's 5,000 images.",
            least=2,
        ),
    ] = None,
    shown_queries: Annotated[
        int,
        own_option(
            "--shown-queries",
            Panel.advanced,
            "Changed queries shown with pictures in the HTML report.",
            least=0,
        ),
    ] = 20,
    reference_backend: Annotated[
        str | None,
        own_option(
            "--reference-backend",
            Panel.advanced,
            "What runs the reference if it is a bundle; default: as --backend.",
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            ": features and scores; default: ~/.cache/hat-export, or $HAT_EXPORT_CACHE",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[bool, option("--no-cache", ": an interrupted one starts anew")] = False,
    batch: Annotated[int, option("--batch", least=1)] = 50,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = 2,
    address: AddressOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Gate a model on recall@K: exit status 0 passed, 1 failed, 2 could not judge.

    With --engine ray, workers of --threads threads each, one if not given, encode and score;
    models, data and --cache must be under the same paths on every machine.
    """
    from hat_export.base.cache import default_cache
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
        gallery=shown_queries,
        threads=threads,
        ray=common.ray_workers(engine, workers, threads, address),
    )
    common.check_report_paths(report)
    dataset = read_dataset(data, split, images or ()).take(captions_per_image).limit(limit)
    architecture = common.read_spec(spec)
    progress = common.show_progress(quiet)
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


COMMAND = Command(
    "parity",
    parity_command,
    examples=(
        "hat-bench parity hat.ckpt bundle/ --data karpathy.json --images flickr30k/",
        "hat-bench parity bundle/ int8/ --data coco/ --max-drop rsum=2 --report p.html",
    ),
    renamed={"--captions": "--captions-per-image", "--gallery": "--shown-queries"},
)
