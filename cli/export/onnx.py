"""``hat-export onnx``: from a checkpoint to a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    OverwriteOption,
    Panel,
    QuietOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
    option,
    own_option,
)


class Attention(StrEnum):
    """How attention is written in the graphs."""

    onnx = "onnx"
    decomposed = "decomposed"


class Target(StrEnum):
    """Whose operators the graphs are written in."""

    onnx = "onnx"
    onnxruntime = "onnxruntime"


class Precision(StrEnum):
    """What the encoders compute in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


def onnx_command(
    checkpoint: Annotated[
        Path, typer.Argument(help="Lightning .ckpt, PyTorch state dict, .safetensors, or folder.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; must not exist.")],
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    target: Annotated[
        Target,
        option(
            "--target",
            ": onnx, standard operators for any runtime, or onnxruntime, the operators that are "
            "fastest in ONNX Runtime on a CPU, among them hat-export's own: those bundles need "
            "hat-export to run",
        ),
    ] = Target.onnx,
    attention: Annotated[
        Attention,
        own_option(
            "--attention",
            Panel.model,
            "Attention as one fused operator (onnx) or taken apart (decomposed).",
        ),
    ] = Attention.onnx,
    precision: Annotated[
        Precision,
        option(
            "--precision",
            ". fp16 and bf16 halve the files and are for GPUs; on a CPU fp16 is "
            "no faster than fp32 and bf16 doesn't run",
        ),
    ] = Precision.fp32,
    require_fused: Annotated[bool, option("--require-fused", " operator")] = False,
    calibration: Annotated[
        Path | None,
        option(
            "--calibration",
            ", here what would overflow in it; default: made-up pictures and captions",
            show_default=False,
        ),
    ] = None,
    calibration_image_count: Annotated[int, option("--calibration-image-count", least=1)] = 64,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Export image, text and alignment graphs as a bundle, checked against PyTorch.

    The bundle appears only if every output equals PyTorch's within the tolerance at batch sizes
    1, 2, 3 and 17 and at caption lengths from 2 to the longest.
    """
    from hat_export.base.packages import require_export_packages
    from hat_export.data.readers import read_dataset
    from hat_export.errors import CheckpointError, InputError

    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint; expected a file or a folder")
    require_export_packages("onnx", "onnxruntime")
    from hat_export.export.onnx_export import export_onnx

    if calibration and precision is Precision.fp32:
        raise InputError("--calibration has no use with --precision fp32: nothing can overflow")
    if target is Target.onnxruntime and attention is Attention.decomposed:
        raise InputError(
            "--target onnxruntime has attention fused; leave --attention or --target out"
        )
    form: Literal["onnx", "decomposed", "packed"] = "onnx"
    if target is Target.onnxruntime:
        form = "packed"
    elif attention is Attention.decomposed:
        form = "decomposed"
    bundle = export_onnx(
        checkpoint,
        out,
        spec=common.read_spec(spec),
        vocabulary=vocabulary,
        attention=form,
        precision=precision.value,
        require_fused=require_fused,
        calibration=(
            read_dataset(calibration, "val").limit(calibration_image_count) if calibration else None
        ),
        overwrite=overwrite,
        threads=threads,
        progress=common.show_progress(quiet),
    )
    found = bundle.manifest.verification
    parts = [
        f"{what} within {found[what]['largest_difference']:.2g} "
        f"(tolerance {found[what]['tolerance']:g})"
        for what in found
    ]
    relation = (
        "equal to PyTorch" if precision is Precision.fp32 else f"{precision.value} beside PyTorch"
    )
    print(f"{out}: {relation}: {', '.join(parts)}")
    for name, graph in bundle.manifest.graphs.items():
        if graph.attention_expected:
            print(
                f"  {name}: {graph.attention_fused} of {graph.attention_expected} attention fused"
                + (f", {len(graph.kept_fp32)} nodes kept in fp32" if graph.kept_fp32 else "")
            )


COMMAND = Command(
    "onnx",
    onnx_command,
    examples=(
        "hat-export onnx hat.ckpt bundle/",
        "hat-export onnx hat.ckpt bundle-cpu/ --target onnxruntime",
    ),
    renamed={"--calibration-images": "--calibration-image-count"},
)
