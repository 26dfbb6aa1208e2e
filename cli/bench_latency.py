"""``hat-bench latency``: how fast is it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hat_export.cli import common
from hat_export.cli.options import QuietOption, ReportOption, SpecOption, VocabularyOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hat_export.latency.record import Measured
    from hat_export.latency.run import Opened
    from hat_export.spec import ModelSpec


@dataclass(frozen=True)
class Target:
    """One thing to measure.

    Attributes:
        name: In the report.
        path: Checkpoint or bundle.
        backend: What runs it.
    """

    name: str
    path: Path
    backend: str


def latency(
    targets: Annotated[
        list[Path], typer.Argument(help="Checkpoints (PyTorch) and bundles, the baseline first.")
    ],
    backend: Annotated[
        list[str] | None,
        typer.Option(help="What runs bundles; may be repeated [onnxruntime].", show_default=False),
    ] = None,
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
    gallery: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Images that a caption is ranked against; may be repeated [50]."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Threads; may be repeated; default: one per core."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="Time per case, after warm-up.")] = 2.0,
    calls: Annotated[int, typer.Option(min=1, help="Fewest turns per case.")] = 10,
    passes: Annotated[
        int, typer.Option(min=1, help="How often every target is opened and timed anew.")
    ] = 3,
    cold_starts: Annotated[
        int, typer.Option(min=0, help="Processes started per target for the cold start.")
    ] = 2,
    bound: Annotated[bool, typer.Option(help="Measure what the machine can reach at best.")] = True,
    parity: Annotated[
        list[Path] | None,
        typer.Option(help="JSON parity report, for recall over latency; may be repeated."),
    ] = None,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
) -> None:
    """Time preprocessing, encoders, scoring and search of several targets in turn, in one run."""
    from functools import partial

    from hat_export.environment import default_threads, environment
    from hat_export.hardware import hardware
    from hat_export.latency.cases import Sizes
    from hat_export.latency.process import INCLUDED
    from hat_export.latency.recalls import recalls_of
    from hat_export.latency.record import Run, measured
    from hat_export.latency.report import latency_report
    from hat_export.latency.run import Effort, Opener, measure_targets

    sizes = Sizes(
        tuple(image_batch or (1, 8)),
        tuple(text_batch or (1, 32)),
        words,
        tuple(parse_score_size(text) for text in score_size or ("8x32", "50x200")),
        tuple(gallery or (50,)),
    )
    common.check_report_paths(report)
    architecture = common.read_spec(spec)
    recalls = recalls_of(parity or [])
    chosen = _named(targets, backend or ["onnxruntime"])
    counts = list(dict.fromkeys(threads or [default_threads()]))
    progress = common.Progress(quiet)
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
        _describe(target, counts[0], cold_starts, work, architecture, vocabulary, progress)
        for target in chosen
    ]
    timings: list[Measured] = []
    told: dict[str, Opened] = {}
    effort = Effort(passes, seconds, calls)
    for count in counts:
        found, opened = measure_targets(
            openers, sizes, count, effort, progress.count, progress.step
        )
        timings += measured(found)
        told |= opened
    bounds = _bounds(timings, told, described, words, progress) if bound else {}
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


def _named(paths: list[Path], backends: list[str]) -> list[Target]:
    """Every checkpoint once, every bundle on every backend, each under a name of its own."""
    from hat_export.bundle import is_bundle
    from hat_export.errors import InputError

    found = [
        Target(f"{path.name} ({backend})", path, backend)
        for path in paths
        for backend in (backends if is_bundle(path) else ["torch"])
    ]
    names = [target.name for target in found]
    result = []
    for target in found:
        alike = names.count(target.name) > 1
        name = f"{target.path.parent.name}/{target.name}" if alike else target.name
        result.append(Target(name, target.path, target.backend))
    doubled = [t.path for t in result if sum(o.name == t.name for o in result) > 1]
    if doubled:
        raise InputError(
            f"{doubled[0]}: two targets would be called the same in the report; name each once, "
            "or rename one of their folders"
        )
    return result


def _open(target: Target, threads: int, spec: ModelSpec | None, vocabulary: Path | None) -> Any:
    return common.open_target(target.path, target.backend, threads, spec, vocabulary)


def _describe(
    target: Target,
    threads: int,
    cold_starts: int,
    work: tuple[int, int, int],
    spec: ModelSpec | None,
    vocabulary: Path | None,
    progress: common.Progress,
) -> dict[str, Any]:
    """Size, starts and memory of a target, each start in a process of its own."""
    import json
    from dataclasses import asdict

    from hat_export.bundle import Bundle, is_bundle
    from hat_export.latency import process

    bundle = Bundle.read(target.path, verify=False) if is_bundle(target.path) else None
    described: dict[str, Any] = {
        "name": target.name,
        "path": target.path.name,
        "backend": target.backend,
        "precision": bundle.manifest.precision if bundle else "fp32",
        "bytes": _bytes_of(target.path),
        "starts": [],
        "peak_bytes": None,
    }
    if not cold_starts:
        return described
    request = process.Target(
        str(target.path),
        target.backend,
        threads,
        None if spec is None else json.dumps(spec.to_json()),
        None if vocabulary is None else str(vocabulary),
    )
    for number in range(1, cold_starts + 1):
        progress.step(f"cold start {number} of {cold_starts}: {target.name}")
        described["starts"].append(asdict(process.start(request)))
    progress.step(f"memory at work: {target.name}")
    images, captions, words = work
    described["peak_bytes"] = process.start(request, images, captions, words).peak_bytes
    return described


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _bounds(
    timings: Sequence[Measured],
    told: dict[str, Opened],
    described: list[dict[str, Any]],
    words: int,
    progress: common.Progress,
) -> dict[str, Any]:
    """The bound of every case that runs in float32 on the CPU."""
    from hat_export.errors import HatError
    from hat_export.roofline.bound import bound
    from hat_export.roofline.cases import CPU_BACKENDS, work_of
    from hat_export.roofline.machine import measure_machine

    plain = {
        target["name"]
        for target in described
        if target["precision"] == "fp32" and target["backend"] in CPU_BACKENDS
    }
    machines, cases = [], []
    for threads in dict.fromkeys(timing.threads for timing in timings):
        work = {}
        for timing in timings:
            opened = told[timing.target]
            if timing.threads == threads and timing.target in plain:
                found = work_of(
                    timing.component, timing.size, opened.spec, words, opened.caption_words
                )
                if found is not None:
                    work[timing.target, timing.component, timing.size] = found
        products = [product for needed in work.values() for product in needed.products]
        try:
            machine = measure_machine(products, threads, progress.count)
        except HatError as error:  # the timings are worth more than their bounds
            return {"reason": str(error), "machines": [], "cases": []}
        machines.append(
            {
                "threads": threads,
                "libraries": list(machine.libraries),
                "left_out": list(machine.left_out),
                "peak_flops": machine.peak,
                "bandwidth": machine.bandwidth,
            }
        )
        names = ("target", "component", "size")
        cases += [
            dict(zip(names, key, strict=True))
            | {"threads": threads}
            | bound(needed, machine).to_json()
            for key, needed in work.items()
        ]
    return {"machines": machines, "cases": cases}
