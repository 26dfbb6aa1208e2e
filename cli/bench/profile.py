"""``hat-bench profile``: where does the time go?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    Panel,
    QuietOption,
    ReportOption,
    SignatureOption,
    ThreadsOption,
    option,
    own_option,
)

if TYPE_CHECKING:
    from collections.abc import Callable

#: Runs of a profile that don't count.
WARM_UP = 5


def profile_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle.")],
    image_count: Annotated[int, option("--image-count", " per call", least=1)] = 1,
    caption_count: Annotated[int, option("--caption-count", " per call", least=1)] = 1,
    words: Annotated[int, option("--words", least=2)] = 16,
    runs: Annotated[int, own_option("--runs", Panel.performance, "Counted calls.", least=1)] = 20,
    threads: ThreadsOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Time every operator of the encoders by ONNX Runtime's own profiler, layer by layer."""
    from hat_export.base.atomic import scratch_folder
    from hat_export.base.machine import default_threads, environment
    from hat_export.base.timer import Timer, own_median
    from hat_export.benchmark.latency.cases import whole_captions
    from hat_export.benchmark.profile.report import Profile, profile_report
    from hat_export.benchmark.profile.trace import graph_layers, read_trace
    from hat_export.bundle.bundle import Bundle
    from hat_export.runtime.backends.onnxruntime_profiler import ProfiledSession
    from hat_export.runtime.backends.opening import open_bundle
    from hat_export.runtime.self_test import noise_pixels

    common.require_signature(require_signature, bundle)
    common.check_report_paths(report)
    progress = common.show_progress(quiet)
    count = threads or default_threads()

    def calls(session: Any) -> dict[str, Callable[[], object]]:
        pixels = noise_pixels(session.spec, image_count, seed=1)
        ids, mask = whole_captions(session.spec, caption_count, words)
        return {
            "image": lambda: session.encode_images(pixels),
            "text": lambda: session.encode_texts(ids, mask),
        }

    opened = Bundle.read(bundle, verify=False)
    layers = {name: graph_layers(opened.graph_path(name)) for name in ("image", "text")}
    progress.step(f"opening {bundle}")
    with open_bundle(bundle, threads=count) as session:
        timer = Timer()
        plain = {
            name: own_median(timer.repeat(call, runs, warm_up=WARM_UP))
            for name, call in calls(session).items()
        }
    with scratch_folder() as folder:
        progress.step("profiling")
        with ProfiledSession(opened, count, folder) as profiled:
            for call in calls(profiled).values():
                for _ in range(WARM_UP + runs):
                    call()
            paths = profiled.finish()
        sizes = {"image": f"{image_count}", "text": f"{caption_count} x {words}"}
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


COMMAND = Command(
    "profile",
    profile_command,
    examples=(
        "hat-bench profile bundle/ --report profile.html",
        "hat-bench profile bundle/ --image-count 8 --caption-count 32 --threads 1",
    ),
    renamed={"--images": "--image-count", "--captions": "--caption-count"},
)
