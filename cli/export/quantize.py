"""``hat-export quantize``: smaller and faster encoders, within a recall budget."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    ImagesOption,
    OverwriteOption,
    Panel,
    QuietOption,
    ReportOption,
    SignatureOption,
    ThreadsOption,
    option,
    own_option,
)

if TYPE_CHECKING:
    from hat_export.bundle.bundle import Bundle
    from hat_export.quantize.bundles import Quantizer
    from hat_export.quantize.plan import Plan
    from hat_export.quantize.schemes import Target
    from hat_export.quantize.search import Outcome


class Mode(StrEnum):
    """What is quantized; the names of :data:`hat_export.quantize.schemes.SCHEMES`."""

    int8_dynamic = "int8-dynamic"
    int8_static = "int8-static"
    int8_weights = "int8-weights"
    int4_weights = "int4-weights"
    fp8 = "fp8"


class TargetName(StrEnum):
    """Kinds of machines; the names of :data:`hat_export.quantize.schemes.TARGETS`."""

    cpu_vnni = "cpu-vnni"
    cpu_avx2 = "cpu-avx2"
    arm64 = "arm64"
    tensorrt = "tensorrt"


class Method(StrEnum):
    """How static ranges are chosen."""

    minmax = "minmax"
    percentile = "percentile"
    entropy = "entropy"
    mse = "mse"


class Objective(StrEnum):
    """What a search makes small."""

    latency = "latency"
    size = "size"


def quantize_command(
    bundle: Annotated[Path, typer.Argument(help="float32 bundle, from `hat-export onnx`.")],
    out: Annotated[Path, typer.Argument(help="Folder of the quantized bundle; must not exist.")],
    mode: Annotated[
        Mode | None,
        own_option(
            "--mode",
            Panel.model,
            "How all layers are quantized. Default: int8-dynamic (int8-static for TensorRT), or "
            "with --max-drop a mixture.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        TargetName | None,
        option("--target", ": a kind of machine; default: this one", show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        option(
            "--calibration",
            "; also for --smooth, --compensate and --max-drop",
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    split: Annotated[
        str, option("--split", ", for ranges and the search; keep test for the proof")
    ] = "val",
    calibration_image_count: Annotated[
        int, option("--calibration-image-count", ", with their captions", least=1)
    ] = 256,
    max_drop: Annotated[
        str | None,
        option(
            "--max-drop",
            ": search for the best mixture of schemes within it; needs --calibration",
            show_default=False,
        ),
    ] = None,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    method: Annotated[
        Method,
        own_option(
            "--method",
            Panel.advanced,
            "How static ranges are chosen from what calibration saw.",
        ),
    ] = Method.minmax,
    smooth: Annotated[
        bool,
        own_option(
            "--smooth",
            Panel.advanced,
            "Move outliers of activations into weights where that makes products more exact.",
        ),
    ] = False,
    compensate: Annotated[
        bool,
        own_option(
            "--compensate",
            Panel.advanced,
            "Round weights so that later ones make up for the errors of earlier ones on the "
            "calibration data (GPTQ): more exact, most of all in 4 bits; takes longer.",
        ),
    ] = False,
    keep: Annotated[
        list[str] | None,
        own_option(
            "--keep",
            Panel.advanced,
            "Keep layers in float32 whose names begin so; may be repeated.",
        ),
    ] = None,
    objective: Annotated[
        Objective, own_option("--objective", Panel.advanced, "What the search makes small.")
    ] = Objective.latency,
    search_image_count: Annotated[
        int | None,
        own_option(
            "--search-image-count",
            Panel.advanced,
            "Images on which the search measures recall.",
            least=2,
        ),
    ] = None,
    state: Annotated[
        Path | None,
        own_option(
            "--state",
            Panel.advanced,
            "File in which a search keeps what it has measured; where it exists, the search goes "
            "on from it.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        own_option("--plan", Panel.advanced, "Apply a saved plan instead.", show_default=False),
    ] = None,
    save_plan: Annotated[
        Path | None,
        own_option(
            "--save-plan",
            Panel.advanced,
            "Save the plan as JSON, to be read, changed and applied again.",
        ),
    ] = None,
    preflight: Annotated[
        bool,
        own_option(
            "--preflight/--no-preflight",
            Panel.advanced,
            "Measure first what the layers gain on this machine (some seconds).",
        ),
    ] = True,
    require_signature: SignatureOption = None,
) -> None:
    """Quantize the encoders of a bundle: 8 or 4 bits, chosen by you or by a recall budget.

    The result is a bundle like any other. `hat-bench parity` proves what it retrieves.
    """
    from hat_export.base.files import check_target
    from hat_export.base.machine import default_threads
    from hat_export.base.packages import require_packages
    from hat_export.bundle.bundle import Bundle
    from hat_export.data.readers import read_dataset
    from hat_export.errors import InputError
    from hat_export.parity.budget import parse_budget

    common.require_signature(require_signature, bundle)
    if plan and (mode or max_drop or keep or smooth or compensate):
        raise InputError(
            "--plan says everything; leave --mode, --max-drop, --keep, --smooth, --compensate out"
        )
    if max_drop and mode:
        raise InputError("--max-drop chooses among the modes itself; leave --mode out")
    if (report or state) and not max_drop:
        raise InputError("--report and --state belong to a search: add --max-drop")
    budget = parse_budget(max_drop) if max_drop else None
    if budget is not None and calibration is None:
        raise InputError("--max-drop measures recall: add --calibration DATASET")
    check_target(out, overwrite)
    common.check_report_paths(report)
    require_packages("onnx", "onnxruntime")
    from hat_export.quantize.bundles import check_form, check_source, quantize_bundle
    from hat_export.quantize.plan import read_plan, uniform_plan, write_plan
    from hat_export.quantize.schemes import check_scheme, find_scheme, find_target

    source = Bundle.read(bundle, verify=False)  # hashed when it is quantized
    check_source(source)
    chosen = read_plan(plan) if plan else None
    machine = find_target(chosen.target if chosen else target.value if target else None)
    check_form(source, machine)
    scheme = find_scheme(
        mode.value if mode else "int8-static" if machine.standard else "int8-dynamic"
    )
    check_scheme(scheme, machine)
    progress = common.show_progress(quiet)
    threads = threads or default_threads()
    dataset = read_dataset(calibration, split, images or ()) if calibration else None
    progress.step(f"target {machine.name}: {machine.reason}")
    if preflight:
        schemes = chosen.schemes if chosen else machine.schemes if budget else (scheme.name,)
        _preflight(source, machine, schemes, threads, quiet)
    outcomes: list[Outcome] = []

    def decide(quantizer: Quantizer) -> Plan:
        if chosen is not None:
            return chosen
        reasons = dict.fromkeys(keep or (), "asked for by --keep")
        if budget is None or dataset is None:
            layers = quantizer.all_layers
            made = uniform_plan(layers, scheme, machine, reasons, method.value, smooth, compensate)
        else:
            from hat_export.quantize.search import Search, search_plan

            task = Search(
                quantizer=quantizer,
                target=machine,
                budget=budget,
                objective=objective.value,
                data=dataset.limit(search_image_count),
                keep=reasons,
                method=method.value,
                smooth=smooth,
                compensate=compensate,
                state=state,
            )
            outcomes.append(search_plan(task))
            made = outcomes[0].best.plan
        if save_plan is not None:
            write_plan(save_plan, made)
        return made

    made = quantize_bundle(
        bundle,
        out,
        decide,
        dataset.limit(calibration_image_count) if dataset else None,
        threads,
        overwrite,
        progress,
    )
    for outcome in outcomes:
        from hat_export.quantize.report import search_report

        common.deliver(search_report(outcome, source), report)
    _tell(source, made)


def _preflight(
    source: Bundle, machine: Target, schemes: tuple[str, ...], threads: int, quiet: bool
) -> None:
    """Say before any time is spent which schemes are slower than float32 on this machine."""
    from hat_export.quantize.bundles import ENCODERS
    from hat_export.quantize.layers import find_layers, load_products
    from hat_export.quantize.preflight import measure_products, runnable
    from hat_export.quantize.schemes import FP32, find_target
    from hat_export.runtime.backends.onnxruntime_backend import PACKED_ATTENTION

    if machine != find_target(None):
        if not quiet:
            print(f"  not measured: this machine isn't {machine.name}", file=sys.stderr)
        return
    layers = {name: find_layers(load_products(source.graph_path(name))) for name in ENCODERS}
    schemes = runnable(schemes)
    packed = source.manifest.attention_form == PACKED_ATTENTION
    found = measure_products(layers, source.manifest.spec, machine, schemes, threads, packed)
    for scheme in schemes:
        gains = ", ".join(
            f"{name} {found.total(name, FP32) / found.total(name, scheme):.2f} times float32's "
            "speed"
            for name in ENCODERS
        )
        slower = found.slower(scheme)
        if slower:
            print(
                f"warning: {scheme} is slower than float32 on this machine: products of {gains}",
                file=sys.stderr,
            )
        elif not quiet:
            print(f"  measured, {scheme}: products of {gains}", file=sys.stderr)


def _tell(source: Bundle, made: Bundle) -> None:
    from hat_export.quantize.search import encoder_bytes

    before, after = encoder_bytes(source), encoder_bytes(made)
    quantization = made.manifest.quantization
    if quantization is None:
        return
    errors = ", ".join(f"{what} {error:.2g}" for what, error in quantization.errors.items())
    print(
        f"{made.path}: {quantization.title()}: {before / 1e6:.1f} -> {after / 1e6:.1f} MB "
        f"({before / after:.2f} times smaller); relative error: {errors}"
    )
    if quantization.kept:
        print(f"  {len(quantization.kept)} layers kept in float32; `hat-export inspect` says why")


COMMAND = Command(
    "quantize",
    quantize_command,
    examples=(
        "hat-export quantize bundle-cpu/ int8/",
        "hat-export quantize bundle/ mixed/ --max-drop rsum=1 --calibration coco/",
    ),
    renamed={
        "--calibration-images": "--calibration-image-count",
        "--search-images": "--search-image-count",
    },
)
