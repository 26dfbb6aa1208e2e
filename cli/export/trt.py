"""``hat-export trt``: from a checkpoint or a bundle to TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import (
    QuietOption,
    ReportOption,
    SignatureOption,
    SpecOption,
    ThreadsOption,
    VocabularyOption,
)

if TYPE_CHECKING:
    from hat_export.tensorrt.request import ProfileRequest


class Runtime(StrEnum):
    """Which library builds and runs the engines."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Alignment(StrEnum):
    """What the alignment engine is built from."""

    graph = "graph"
    plugin = "plugin"


def trt(
    source: Annotated[Path, typer.Argument(help="Checkpoint, or bundle of ONNX graphs.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle; must not exist.")],
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision; the default.")] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="bfloat16.")] = False,
    fp32: Annotated[
        bool, typer.Option("--fp32", help="Single precision; TensorRT fuses no attention in it.")
    ] = False,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Linear layers in int8, the rest in fp16; needs --calibration."
        ),
    ] = False,
    fp8: Annotated[
        bool,
        typer.Option(
            "--fp8",
            help="Linear layers in fp8 (sm_89 and newer), the rest in fp16; needs --calibration.",
        ),
    ] = False,
    min_batch: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            help="Smallest batch of images or captions [1]. Repeat the six sizes for several "
            "profiles: the n-th values make the n-th, a single one holds for all.",
        ),
    ] = None,
    opt_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch for which engines are tuned [8].")
    ] = None,
    max_batch: Annotated[list[int] | None, typer.Option(min=1, help="Largest batch [64].")] = None,
    min_words: Annotated[
        list[int] | None, typer.Option(min=1, help="Shortest captions, in word pieces [1].")
    ] = None,
    opt_words: Annotated[
        list[int] | None, typer.Option(min=1, help="Length for which engines are tuned [16].")
    ] = None,
    max_words: Annotated[
        list[int] | None, typer.Option(min=1, help="Longest captions [the model's longest].")
    ] = None,
    sm: Annotated[
        list[int] | None,
        typer.Option(
            help="Compute capability to build for, such as 89; may be repeated. Default: the "
            "present GPU; without one, every target from 80 on that TensorRT-RTX knows.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[
        Runtime,
        typer.Option(
            help="TensorRT needs a GPU to build, TensorRT-RTX doesn't; auto takes the first that "
            "can build here."
        ),
    ] = Runtime.auto,
    require_fused: Annotated[
        bool,
        typer.Option(
            "--require-fused", help="Fail unless every attention layer is one kernel of its engine."
        ),
    ] = False,
    alignment: Annotated[
        Alignment,
        typer.Option(
            help="Alignment engine from the ONNX graph, or from this project's GPU kernel as a "
            "plugin: that needs full TensorRT, a GPU and Triton."
        ),
    ] = Alignment.graph,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="A dataset, in any form that hat-bench parity reads: "
            "real data on which lower precisions find their "
            "ranges; default: made-up pictures and captions.",
            show_default=False,
        ),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="Images of the calibration data to use, evenly spread.")
    ] = 64,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of engines built before [~/.cache/hat-export/engines].", show_default=False
        ),
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Build anew, and keep nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    threads: ThreadsOption = None,
    report: ReportOption = None,
    quiet: QuietOption = False,
    require_signature: SignatureOption = None,
) -> None:
    """Build TensorRT engines of the image encoder, the text encoder and the alignment.

    The result is a bundle: it holds the ONNX graphs that were built, the engines, and the builder's
    logs. The graphs run on the CPU first, with the roundings of their precision, and have to agree
    with PyTorch. Which attention layers are fused is read from the engines themselves.
    """
    from hat_export.base.packages import require_packages
    from hat_export.data.readers import read_dataset
    from hat_export.errors import InputError

    common.require_signature(require_signature, source)
    precision = _one_precision({"fp16": fp16, "bf16": bf16, "fp32": fp32, "int8": int8, "fp8": fp8})
    if calibration and precision == "fp32":
        raise InputError("--calibration has no use with --fp32: nothing can overflow")
    if cache and no_cache:
        raise InputError("--cache and --no-cache exclude each other; leave one out")
    profiles = _profiles(
        {
            "--min-batch": min_batch or [1],
            "--opt-batch": opt_batch or [8],
            "--max-batch": max_batch or [64],
            "--min-words": min_words or [1],
            "--opt-words": opt_words or [16],
        },
        max_words or [None],
    )
    common.check_report_paths(report)
    if not source.exists():
        raise InputError(f"{source}: no such checkpoint or bundle")
    require_packages("onnx", "onnxruntime")
    from hat_export.report.report import write_report
    from hat_export.runtime.trt_library import load_library
    from hat_export.tensorrt.cache import default_cache
    from hat_export.tensorrt.engine_export import export_engines
    from hat_export.tensorrt.engine_report import engine_report
    from hat_export.tensorrt.request import choose_targets

    library = load_library(runtime.value)
    found = export_engines(
        source,
        out,
        library,
        precision,
        profiles=profiles,
        targets=choose_targets(library, precision, sm or []),
        require_fused=require_fused,
        alignment=alignment.value,
        calibration=(
            read_dataset(calibration, "val").limit(calibration_images) if calibration else None
        ),
        spec=common.read_spec(spec),
        vocabulary=vocabulary,
        cache=None if no_cache else cache or default_cache(),
        overwrite=overwrite,
        threads=threads,
        progress=common.progress(quiet),
    )
    common.show(engine_report(found, commands=False))
    for path in report or []:
        write_report(engine_report(found, commands=True), path)


def _one_precision(asked: dict[str, bool]) -> str:
    """The precision that was asked for; fp16 if none was.

    Raises:
        InputError: if several were.
    """
    from hat_export.errors import InputError

    names = [name for name, wanted in asked.items() if wanted]
    if len(names) > 1:
        shown = " and ".join(f"--{name}" for name in names)
        raise InputError(f"{shown} exclude each other; choose one precision")
    return names[0] if names else "fp16"


def _profiles(
    sizes: Mapping[str, Sequence[int]], longest: Sequence[int | None]
) -> list[ProfileRequest]:
    """Profiles by position: the n-th value of each size, or its only one.

    Args:
        sizes: Option to its values, in the order smallest, tuned, largest batch, then words.
        longest: Values of --max-words; None for the model's longest.

    Raises:
        InputError: if two options have different numbers of values, and more than one.
    """
    from hat_export.bundle.engines import Range
    from hat_export.errors import InputError
    from hat_export.tensorrt.request import ProfileRequest

    given = {option: len(values) for option, values in sizes.items()} | {
        "--max-words": len(longest)
    }
    count = max(given.values())
    for option, times in given.items():
        if times not in (1, count):
            raise InputError(
                f"{option} is given {times} times, another size {count} times; give each "
                "once, or once per profile"
            )
    columns = [list(values) * (count if len(values) == 1 else 1) for values in sizes.values()]
    ends = list(longest) * (count if len(longest) == 1 else 1)
    return [
        ProfileRequest(Range(smallest, tuned, largest), shortest, tuned_words, end)
        for (smallest, tuned, largest, shortest, tuned_words), end in zip(
            zip(*columns, strict=True), ends, strict=True
        )
    ]
