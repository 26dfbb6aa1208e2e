"""The bounds of a run's cases, as the run's record keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hat_export.base.progress import Progress
from hat_export.benchmark.latency.record import Measured
from hat_export.benchmark.latency.run import Opened
from hat_export.benchmark.roofline.bound import bound_of
from hat_export.benchmark.roofline.cases import CPU_BACKENDS, work_of
from hat_export.benchmark.roofline.machine import measure_machine
from hat_export.errors import HatError


def bounds_of(
    timings: Sequence[Measured],
    told: Mapping[str, Opened],
    targets: Sequence[Mapping[str, Any]],
    words: int,
    progress: Progress,
) -> dict[str, Any]:
    """Measure the machine, and bound every case that runs in float32 on the CPU.

    Args:
        timings: The run's cases.
        told: What each target told while it was open.
        targets: From :func:`hat_export.benchmark.latency.targets.describe`.
        words: Word pieces of the captions that are encoded and scored.
        progress: Told after each library.

    Returns:
        ``machines`` and ``cases``; instead of them the ``reason`` why nothing could be measured,
        since the timings are worth more than their bounds.
    """
    plain = {
        target["name"]
        for target in targets
        if target["precision"] == "fp32" and target["backend"] in CPU_BACKENDS
    }
    machines, cases = [], []
    for threads in dict.fromkeys(timing.threads for timing in timings):
        work = {}
        for timing in timings:
            if timing.threads != threads or timing.target not in plain:
                continue
            opened = told[timing.target]
            needed = work_of(
                timing.component, timing.size, opened.spec, words, opened.caption_words
            )
            if needed is not None:
                work[timing.target, timing.component, timing.size] = needed
        products = [product for needed in work.values() for product in needed.products]
        try:
            machine = measure_machine(products, threads, progress)
        except HatError as error:
            return {"reason": str(error), "machines": [], "cases": []}
        machines.append(machine.to_json())
        for (target, component, size), needed in work.items():
            case = {"target": target, "component": component, "size": size, "threads": threads}
            cases.append(case | bound_of(needed, machine).to_json())
    return {"machines": machines, "cases": cases}
