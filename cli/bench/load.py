"""``hat-bench load``: how does it stand up to requests?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import (
    BackendOption,
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
)


def load(
    target: Annotated[Path, typer.Argument(help="Bundle, or checkpoint (PyTorch).")],
    work: Annotated[
        list[str] | None,
        typer.Option(help="images, texts or search; may be repeated; default: all."),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            help="SingleStream, MultiStream, Offline or Server; may be repeated; default: all."
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Least duration of a scenario.")] = 5.0,
    most_seconds: Annotated[
        float, typer.Option(min=1, help="When a scenario is ended, even if it is not valid yet.")
    ] = 60.0,
    gallery: Annotated[int, typer.Option(min=1, help="Images that are searched.")] = 50,
    max_batch: Annotated[int, typer.Option(min=1, help="Most requests answered together.")] = 8,
    batch_delay: Annotated[
        float, typer.Option(min=0, help="Milliseconds that an incomplete batch waits.")
    ] = 0.0,
    server_qps: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Server: queries/s [half of Offline's, less until they hold]."
        ),
    ] = None,
    server_latency: Annotated[
        float | None,
        typer.Option(min=0.001, help="Server: milliseconds for 99 % [5 x SingleStream's]."),
    ] = None,
    logs: Annotated[Path, typer.Option(help="Folder that gets LoadGen's own files.")] = Path(
        "runs/load"
    ),
    backend: BackendOption = "onnxruntime",
    threads: ThreadsOption = None,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Run MLPerf LoadGen's scenarios; exit status 1 if LoadGen calls one of them invalid."""
    from hat_export.base.hardware import hardware
    from hat_export.base.machine import default_threads, environment
    from hat_export.benchmark.load.report import load_report
    from hat_export.benchmark.load.scenarios import SCENARIOS, Load, loadgen, run_scenarios
    from hat_export.benchmark.load.work import WORKS
    from hat_export.runtime.backends.opening import open_target

    common.require_signature(require_signature, target)
    works = _chosen("--work", work, tuple(WORKS))
    scenarios = _chosen("--scenario", scenario, SCENARIOS)
    common.check_report_paths(report)
    loadgen()
    progress = common.progress(quiet)
    facts = environment() | {"hardware": hardware()}
    settings = Load(
        seconds,
        max(seconds, most_seconds),
        max_batch,
        batch_delay / 1e3,
        server_qps,
        None if server_latency is None else server_latency / 1e3,
    )
    outcomes, done = [], []
    architecture = common.read_spec(spec)
    count = threads or default_threads()
    progress.step(f"opening {target}")
    with open_target(target, backend, count, architecture, vocabulary) as session:
        name = f"{target.name} ({session.backend})"
        for kind in works:
            made = WORKS[kind](session, gallery)
            done.append(made)
            outcomes += run_scenarios(made, scenarios, settings, logs, progress)
    result = load_report(name, outcomes, done, settings, facts)
    common.deliver(result, report)
    progress.step(f"LoadGen's own files are in {logs}")
    if not result.passed:
        raise typer.Exit(1)


def _chosen(option: str, wanted: list[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """What was asked for, or all of it.

    Raises:
        InputError: if something else was asked for.
    """
    from hat_export.errors import InputError

    for name in wanted or ():
        if name not in known:
            raise InputError(f"{option} {name}: expected one of {', '.join(known)}")
    return tuple(wanted or known)
