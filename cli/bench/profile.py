"""``hat-bench profile``: where does the time go?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hat_export.cli import common
from hat_export.cli.options import QuietOption, ReportOption, SignatureOption, ThreadsOption

if TYPE_CHECKING:
    from collections.abc import Callable

#: Runs of a profile that don't count.
WARM_UP = 5


def profile(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    images: Annotated[int, typer.Option(min=1, help="Images per call.")] = 1,
    captions: Annotated[int, typer.Option(min=1, help="Captions per call.")] = 1,
    words: Annotated[int, typer.Option(min=2, help="Word pieces per caption.")] = 16,
    runs: Annotated[int, typer.Option(min=1, help="Counted calls.")] = 20,
    threads: ThreadsOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Time every operator of the encoders by ONNX Runtime's own profiler, layer by layer."""
    from hat_export.base.atomic import scratch_folder
    from hat_export.base.machine import default_threads, environment
    from hat_export.benchmark.latency.cases import whole_captions
    from hat_export.benchmark.profile.report import Profile, profile_report
    from hat_export.benchmark.profile.trace import graph_layers, read_trace
    from hat_export.bundle.bundle import Bundle
    from hat_export.runtime.backends.onnxruntime_profiler import ProfiledSession
    from hat_export.runtime.backends.opening import open_bundle
    from hat_export.runtime.self_test import noise_pixels

    common.require_signature(require_signature, bundle)
    common.check_report_paths(report)
    progress = common.progress(quiet)
    count = threads or default_threads()

    def calls(session: Any) -> dict[str, Callable[[], object]]:
        pixels = noise_pixels(session.spec, images, seed=1)
        ids, mask = whole_captions(session.spec, captions, words)
        return {
            "image": lambda: session.encode_images(pixels),
            "text": lambda: session.encode_texts(ids, mask),
        }

    opened = Bundle.read(bundle, verify=False)
    layers = {name: graph_layers(opened.graph_path(name)) for name in ("image", "text")}
    progress.step(f"opening {bundle}")
    with open_bundle(bundle, threads=count) as session:
        plain = {name: _median(call, runs) for name, call in calls(session).items()}
    with scratch_folder() as folder:
        progress.step("profiling")
        with ProfiledSession(opened, count, folder) as profiled:
            for call in calls(profiled).values():
                for _ in range(WARM_UP + runs):
                    call()
            paths = profiled.finish()
        sizes = {"image": f"{images}", "text": f"{captions} x {words}"}
        profiles = [
            Profile(
                name,
                sizes[name],
                plain[name],
                read_trace(paths[name], layers[name]),
                WARM_UP,
            )
            for name in ("image", "text")
        ]
    common.deliver(profile_report(bundle.name, profiles, count, environment()), report)


def _median(call: Callable[[], object], runs: int) -> float:
    """Seconds of a call after some warm-up."""
    import statistics
    import time

    seconds = []
    for _ in range(WARM_UP + runs):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])
