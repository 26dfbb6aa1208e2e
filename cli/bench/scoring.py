"""``hat-bench scoring``: the scoring kernel beside its bound."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import QuietOption, ReportOption, SpecOption


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

    from hat_export.base.machine import default_threads, environment

    count = threads or default_threads()
    # OpenBLAS reads this when numpy is imported, which so far nobody has done.
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(count)
    import numpy as np

    from hat_export.benchmark.scoring import make_workload, scoring_report, time_level
    from hat_export.kernels.alignment_cpu import resolve_path
    from hat_export.spec import LEVELS, OFFICIAL

    common.check_report_paths(report)
    architecture = common.read_spec(spec) or OFFICIAL
    if direction:
        architecture = replace(architecture, direction="i2t" if direction == "i2t" else "t2i")
    chosen = resolve_path(path.value)
    progress = common.progress(quiet)
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
