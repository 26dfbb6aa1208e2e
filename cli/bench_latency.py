"""``hat-bench latency``: how fast is it?"""

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
