"""``hat-bench scoring``: the scoring kernel beside its bound."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    Panel,
    QuietOption,
    ReportOption,
    SpecOption,
    ThreadsOption,
    option,
    own_option,
)


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


def scoring_command(
    spec: SpecOption = None,
    direction: Annotated[
        Direction | None,
        own_option("--direction", Panel.model, "Score direction; default: the spec's."),
    ] = None,
    image_count: Annotated[int, option("--image-count", " per call", least=1)] = 16,
    caption_count: Annotated[int, option("--caption-count", " per call", least=1)] = 320,
    formula_caption_count: Annotated[
        int,
        own_option(
            "--formula-caption-count",
            Panel.data,
            "Captions that the published formula scores a call.",
            least=1,
        ),
    ] = 8,
    report: ReportOption = None,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    rounds: Annotated[
        int, own_option("--rounds", Panel.performance, "Calls of each competitor.", least=1)
    ] = 7,
    path: Annotated[
        KernelChoice,
        own_option(
            "--path",
            Panel.advanced,
            "Instruction set of the kernel; auto: the best there is.",
        ),
    ] = KernelChoice.auto,
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
    progress = common.show_progress(quiet)
    random = np.random.default_rng(0)
    with_torch = importlib.util.find_spec("torch") is not None
    times = []
    for level in range(1, LEVELS + 1):
        workload = make_workload(architecture, level, image_count, caption_count, random)
        times.append(
            time_level(
                architecture, workload, count, chosen, rounds, formula_caption_count, with_torch
            )
        )
        progress.count("levels timed", level, LEVELS)
    result = scoring_report(times, architecture, chosen, count, environment())
    common.deliver(result, report)


COMMAND = Command(
    "scoring",
    scoring_command,
    examples=(
        "hat-bench scoring",
        "hat-bench scoring --image-count 64 --caption-count 320 --threads 1 --path avx2",
    ),
    renamed={
        "--images": "--image-count",
        "--captions": "--caption-count",
        "--formula-captions": "--formula-caption-count",
    },
)
