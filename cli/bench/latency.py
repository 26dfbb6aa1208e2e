"""``hat-bench latency``: how fast is it?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    Panel,
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    VocabularyOption,
    option,
    own_option,
)

if TYPE_CHECKING:
    from hat_export.benchmark.latency.record import Measured
    from hat_export.benchmark.latency.run import Opened
    from hat_export.benchmark.latency.targets import Target
    from hat_export.runtime.session import Session
    from hat_export.spec import ModelSpec


def latency_command(
    targets: Annotated[
        list[Path], typer.Argument(help="Checkpoints (PyTorch) and bundles, the baseline first.")
    ],
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    backend: Annotated[
        list[str] | None,
        option("--backend", "; may be repeated [onnxruntime]", show_default=False),
    ] = None,
    image_batch: Annotated[
        list[int] | None,
        own_option(
            "--image-batch", Panel.data, "Images per call; may be repeated [1, 8].", least=1
        ),
    ] = None,
    text_batch: Annotated[
        list[int] | None,
        own_option(
            "--text-batch", Panel.data, "Captions per call; may be repeated [1, 32].", least=1
        ),
    ] = None,
    words: Annotated[int, option("--words", least=2)] = 16,
    score_size: Annotated[
        list[str] | None,
        own_option("--score-size", Panel.data, "IMAGESxCAPTIONS per call; may be repeated [8x32]."),
    ] = None,
    gallery: Annotated[
        list[int] | None, option("--gallery", "; may be repeated [50]", least=1)
    ] = None,
    parity: Annotated[
        list[Path] | None,
        own_option(
            "--parity",
            Panel.data,
            "JSON parity report, for recall over latency; may be repeated.",
        ),
    ] = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    threads: Annotated[
        list[int] | None,
        option("--threads", "; may be repeated; default: one per core", least=1),
    ] = None,
    seconds: Annotated[float, option("--seconds", ", after warm-up", least=0)] = 2.0,
    calls: Annotated[
        int, own_option("--calls", Panel.performance, "Fewest turns per case.", least=1)
    ] = 10,
    passes: Annotated[
        int,
        own_option(
            "--passes",
            Panel.performance,
            "How often every target is opened and timed anew.",
            least=1,
        ),
    ] = 3,
    cold_starts: Annotated[
        int,
        own_option(
            "--cold-starts",
            Panel.performance,
            "Processes started per target for the cold start.",
            least=0,
        ),
    ] = 2,
    bound: Annotated[
        bool,
        own_option(
            "--bound/--no-bound", Panel.performance, "Measure what the machine can reach at best."
        ),
    ] = True,
    require_signature: SignatureOption = None,
) -> None:
    """Time preprocessing, encoders, scoring and search of several targets in turn, in one run."""
    from functools import partial

    from hat_export.base.machine import default_threads, environment, hardware
    from hat_export.benchmark.latency.bounds import bounds_of
    from hat_export.benchmark.latency.cases import Sizes
    from hat_export.benchmark.latency.process import INCLUDED
    from hat_export.benchmark.latency.recalls import recalls_of
    from hat_export.benchmark.latency.record import Run, measured
    from hat_export.benchmark.latency.report import latency_report
    from hat_export.benchmark.latency.run import Effort, Opener, measure_targets
    from hat_export.benchmark.latency.targets import describe, name_targets

    common.require_signature(require_signature, *targets)
    sizes = Sizes(
        tuple(image_batch or (1, 8)),
        tuple(text_batch or (1, 32)),
        words,
        tuple(parse_score_size(text) for text in score_size or ("8x32",)),
        tuple(gallery or (50,)),
    )
    common.check_report_paths(report)
    architecture = common.read_spec(spec)
    recalls = recalls_of(parity or [])
    chosen = name_targets(targets, backend or ["onnxruntime"])
    counts = list(dict.fromkeys(threads or [default_threads()]))
    progress = common.show_progress(quiet)
    # Before the run: its own load is not the machine's.
    facts = environment() | {"hardware": hardware()}
    openers = [
        Opener(
            target.name,
            partial(_open, target, spec=architecture, vocabulary=vocabulary),
        )
        for target in chosen
    ]
    work = (max(sizes.images), max(sizes.texts), words)
    # Before the timing: what can't be opened is told at once.
    described = [
        describe(target, counts[0], cold_starts, work, architecture, vocabulary, progress)
        for target in chosen
    ]
    timings: list[Measured] = []
    told: dict[str, Opened] = {}
    effort = Effort(passes, seconds, calls)
    for count in counts:
        found, opened = measure_targets(openers, sizes, count, effort, progress)
        timings += measured(found)
        told |= opened
    bounds = bounds_of(timings, told, described, words, progress) if bound else {}
    settings = {
        "words": words,
        "threads": counts,
        "passes": passes,
        "seconds": seconds,
        "calls": calls,
        "cold_start_included": INCLUDED,
        "memory_work": f"{work[0]} images and {work[1]} captions of {words} word pieces, and "
        "their scores",
    }
    run = Run(tuple(timings), tuple(described), settings, facts, bounds)
    common.deliver(latency_report(run, recalls), report)


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


def _open(target: Target, threads: int, spec: ModelSpec | None, vocabulary: Path | None) -> Session:
    from hat_export.runtime.backends.opening import open_target

    return open_target(target.path, target.backend, threads, spec, vocabulary)


COMMAND = Command(
    "latency",
    latency_command,
    examples=(
        "hat-bench latency hat.ckpt bundle/ --report latency.html",
        "hat-bench latency bundle/ --image-batch 1 --image-batch 16 --threads 1",
    ),
)
