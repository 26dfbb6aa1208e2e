"""``hat-bench search``: how many candidates does two-stage search need?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    BackendOption,
    DataOption,
    ImagesOption,
    LimitOption,
    Panel,
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
    option,
    own_option,
)


def search_command(
    target: Annotated[Path, typer.Argument(help="Checkpoint (PyTorch) or bundle.")],
    data: DataOption,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    backend: BackendOption = "onnxruntime",
    images: ImagesOption = None,
    split: Annotated[str, option("--split", ": it is searched")] = "test",
    tuning_split: Annotated[
        str,
        own_option("--tuning-split", Panel.data, "Split that chooses the number of candidates."),
    ] = "val",
    limit: LimitOption = None,
    queries: Annotated[
        int, own_option("--queries", Panel.data, "Captions to time.", least=1)
    ] = 200,
    recall_target: Annotated[
        float,
        own_option(
            "--recall-target",
            Panel.output,
            "Points of recall@K that may be lost, at most.",
            least=0,
        ),
    ] = 0.1,
    candidates: Annotated[
        list[str] | None,
        own_option(
            "--candidates",
            Panel.output,
            "How candidates are found: pooled, level3; default: both.",
        ),
    ] = None,
    storage: Annotated[str, option("--storage")] = "float16",
    report: ReportOption = None,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Choose the number of candidates of two-stage search, and show recall and latency."""
    from hat_export.base.atomic import scratch_folder
    from hat_export.base.machine import environment
    from hat_export.benchmark.search import index_split, search_report, tune_search
    from hat_export.data.readers import read_dataset
    from hat_export.index.search import CANDIDATES, candidate_source
    from hat_export.runtime.backends.opening import open_target

    common.check_report_paths(report)
    kinds = candidates or list(CANDIDATES)
    for kind in kinds:
        candidate_source(kind)
    common.require_signature(require_signature, target)
    names = (tuning_split, split)
    datasets = [read_dataset(data, name, images or ()).limit(limit) for name in names]
    architecture = common.read_spec(spec)
    progress = common.show_progress(quiet)
    with (
        open_target(target, backend, threads, architecture, vocabulary) as session,
        scratch_folder() as folder,
    ):
        splits = [
            index_split(session, dataset, folder / f"{number}.hatidx", storage, progress=progress)
            for number, dataset in enumerate(datasets)
        ]
        results = {
            kind: tune_search(session, splits[0], splits[1], kind, recall_target, queries)
            for kind in kinds
        }
        for indexed in splits:
            indexed.index.close()
    result = search_report(
        results, recall_target, (datasets[0].name, datasets[1].name), environment()
    )
    common.deliver(result, report)


COMMAND = Command(
    "search",
    search_command,
    examples=(
        "hat-bench search bundle/ --data karpathy.json --images flickr30k/",
        "hat-bench search bundle/ --data coco/ --recall-target 0.5 --candidates pooled",
    ),
    renamed={"--calibration-split": "--tuning-split"},
)
