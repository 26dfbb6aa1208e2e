"""``hat-bench load``: how does it stand up to requests?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    BackendOption,
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


def load_command(
    target: Annotated[Path, typer.Argument(help="Bundle, or checkpoint (PyTorch).")],
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    backend: BackendOption = "onnxruntime",
    work: Annotated[
        list[str] | None,
        own_option("--work", Panel.data, "images, texts or search; may be repeated; default: all."),
    ] = None,
    scenario: Annotated[
        list[str] | None,
        own_option(
            "--scenario",
            Panel.data,
            "SingleStream, MultiStream, Offline or Server; may be repeated; default: all.",
        ),
    ] = None,
    gallery: Annotated[int, option("--gallery", least=1)] = 50,
    logs: Annotated[
        Path, own_option("--logs", Panel.output, "Folder that gets LoadGen's own files.")
    ] = Path("runs/load"),
    report: ReportOption = None,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    seconds: Annotated[float, option("--seconds", ": a scenario's duration", least=0.1)] = 5.0,
    most_seconds: Annotated[
        float,
        own_option(
            "--most-seconds",
            Panel.performance,
            "When a scenario is ended, even if it is not valid yet.",
            least=1,
        ),
    ] = 60.0,
    max_batch: Annotated[
        int, option("--max-batch", ": requests that are answered together", least=1)
    ] = 8,
    batch_delay: Annotated[
        float,
        own_option(
            "--batch-delay",
            Panel.performance,
            "Milliseconds that an incomplete batch waits.",
            least=0,
        ),
    ] = 0.0,
    server_qps: Annotated[
        float | None,
        own_option(
            "--server-qps",
            Panel.advanced,
            "Server: queries/s [half of Offline's, less until they hold].",
            least=0.001,
        ),
    ] = None,
    server_latency: Annotated[
        float | None,
        own_option(
            "--server-latency",
            Panel.advanced,
            "Server: milliseconds for 99 % [5 x SingleStream's].",
            least=0.001,
        ),
    ] = None,
    require_signature: SignatureOption = None,
) -> None:
    """Run MLPerf LoadGen's scenarios; exit status 1 if LoadGen calls one of them invalid."""
    from hat_export.base.machine import default_threads, environment, hardware
    from hat_export.benchmark.load.report import load_report
    from hat_export.benchmark.load.scenarios import SCENARIOS, Load, loadgen, run_scenarios
    from hat_export.benchmark.load.work import WORKS
    from hat_export.runtime.backends.opening import open_target

    common.require_signature(require_signature, target)
    works = _chosen("--work", work, tuple(WORKS))
    scenarios = _chosen("--scenario", scenario, SCENARIOS)
    common.check_report_paths(report)
    loadgen()
    progress = common.show_progress(quiet)
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


COMMAND = Command(
    "load",
    load_command,
    examples=(
        "hat-bench load bundle/",
        "hat-bench load bundle/ --work search --scenario Server --server-qps 200",
    ),
)
