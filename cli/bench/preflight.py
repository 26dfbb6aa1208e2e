"""``hat-bench preflight``: what quantization gains on this machine, before it is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import QuietOption, ReportOption, SignatureOption, ThreadsOption


def preflight_command(
    bundle: Annotated[Path, typer.Argument(help="float32 bundle, from `hat-export onnx`.")],
    report: ReportOption = None,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Time a model's matrix products in every scheme that this CPU can run, beside float32."""
    from hat_export.base.machine import default_threads
    from hat_export.bundle.bundle import Bundle
    from hat_export.quantize.bundles import ENCODERS, check_source
    from hat_export.quantize.layers import find_layers, load_products
    from hat_export.quantize.preflight import measure_products, preflight_report
    from hat_export.quantize.schemes import find_target
    from hat_export.runtime.backends.onnxruntime_backend import PACKED_ATTENTION

    common.require_signature(require_signature, bundle)
    common.check_report_paths(report)
    source = Bundle.read(bundle, verify=False)
    check_source(source)
    layers = {name: find_layers(load_products(source.graph_path(name))) for name in ENCODERS}
    target, spec = find_target(None), source.manifest.spec
    threads = threads or default_threads()
    progress = common.show_progress(quiet)
    packed = source.manifest.attention_form == PACKED_ATTENTION
    found = measure_products(layers, spec, target, target.schemes, threads, packed, progress)
    common.deliver(preflight_report(found, spec, threads), report)


COMMAND = Command(
    "preflight",
    preflight_command,
    examples=("hat-bench preflight bundle-cpu/ --threads 4 --report preflight.html",),
)
