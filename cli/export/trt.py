"""``hat-export trt``: from a checkpoint or a bundle to TensorRT engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    OverwriteOption,
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

if TYPE_CHECKING:
    from hat_export.tensorrt.request import ProfileRequest


class Precision(StrEnum):
    """What the encoders compute in."""

    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"


class Runtime(StrEnum):
    """Which library builds and runs the engines."""

    auto = "auto"
    tensorrt = "tensorrt"
    tensorrt_rtx = "tensorrt-rtx"


class Alignment(StrEnum):
    """What the alignment engine is built from."""

    graph = "graph"
    plugin = "plugin"


def trt_command(
    source: Annotated[Path, typer.Argument(help="Checkpoint, or bundle of ONNX graphs.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new bundle; must not exist.")],
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    precision: Annotated[
        Precision | None,
        option(
            "--precision",
            "; default: fp16. int8 and fp8 (sm_89 and newer) are for the linear layers, the rest "
            "in fp16, and need --calibration; TensorRT fuses no attention in fp32",
            show_default=False,
        ),
    ] = None,
    fp16: Annotated[bool, own_option("--fp16", Panel.model, "Short for --precision fp16.")] = False,
    require_fused: Annotated[bool, option("--require-fused", " kernel of its engine")] = False,
    alignment: Annotated[
        Alignment,
        own_option(
            "--alignment",
            Panel.model,
            "Alignment engine from the ONNX graph, or from this project's GPU kernel as a plugin: "
            "that needs full TensorRT, a GPU and Triton.",
        ),
    ] = Alignment.graph,
    sm: Annotated[
        list[int] | None,
        own_option(
            "--sm",
            Panel.model,
            "Compute capability to build for, such as 89; may be repeated. Default: the present "
            "GPU; without one, every target from 80 on that TensorRT-RTX knows.",
            show_default=False,
        ),
    ] = None,
    runtime: Annotated[
        Runtime,
        own_option(
            "--runtime",
            Panel.model,
            "TensorRT needs a GPU to build, TensorRT-RTX doesn't; auto takes the first that can "
            "build here.",
        ),
    ] = Runtime.auto,
    calibration: Annotated[
        Path | None,
        option("--calibration", "; default: made-up pictures and captions", show_default=False),
    ] = None,
    calibration_image_count: Annotated[int, option("--calibration-image-count", least=1)] = 64,
    report: ReportOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    min_batch: Annotated[
        list[int] | None,
        own_option(
            "--min-batch",
            Panel.performance,
            "Smallest batch of images or captions [1]. Repeat the six sizes for several profiles: "
            "the n-th values make the n-th, a single one holds for all.",
            least=1,
        ),
    ] = None,
    opt_batch: Annotated[
        list[int] | None,
        own_option(
            "--opt-batch", Panel.performance, "Batch for which engines are tuned [8].", least=1
        ),
    ] = None,
    max_batch: Annotated[list[int] | None, option("--max-batch", " [64]", least=1)] = None,
    min_words: Annotated[
        list[int] | None,
        own_option(
            "--min-words", Panel.performance, "Shortest captions, in word pieces [1].", least=1
        ),
    ] = None,
    opt_words: Annotated[
        list[int] | None,
        own_option(
            "--opt-words", Panel.performance, "Length for which engines are tuned [16].", least=1
        ),
    ] = None,
    max_words: Annotated[
        list[int] | None,
        own_option(
            "--max-words", Panel.performance, "Longest captions [the model's longest].", least=1
        ),
    ] = None,
    threads: ThreadsOption = None,
    cache: Annotated[
        Path | None,
        option(
            "--cache",
            ": engines [~/.cache/hat-export/engines, or $HAT_EXPORT_CACHE/engines]",
            show_default=False,
        ),
    ] = None,
    no_cache: Annotated[bool, option("--no-cache", ", and build anew")] = False,
    require_signature: SignatureOption = None,
) -> None:
    """Build TensorRT engines of the image encoder, the text encoder and the alignment.

    The result is a bundle: it holds the ONNX graphs that were built, the engines, and the builder's
    logs. The graphs run on the CPU first, with the roundings of their precision, and have to agree
    with PyTorch. Which attention layers are fused is read from the engines themselves.
    """
    from hat_export.base.cache import default_cache
    from hat_export.base.packages import require_packages
    from hat_export.data.readers import read_dataset
    from hat_export.errors import InputError

    common.require_signature(require_signature, source)
    if fp16 and precision not in (None, Precision.fp16):
        raise InputError(
            f"--fp16 and --precision {precision} exclude each other; choose one precision"
        )
    chosen = (precision or Precision.fp16).value
    if calibration and precision is Precision.fp32:
        raise InputError("--calibration has no use with --precision fp32: nothing can overflow")
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
    from hat_export.tensorrt.engine_export import export_engines
    from hat_export.tensorrt.report import engine_report
    from hat_export.tensorrt.request import choose_targets

    library = load_library(runtime.value)
    found = export_engines(
        source,
        out,
        library,
        chosen,
        profiles=profiles,
        targets=choose_targets(library, chosen, sm or []),
        require_fused=require_fused,
        alignment=alignment.value,
        calibration=(
            read_dataset(calibration, "val").limit(calibration_image_count) if calibration else None
        ),
        spec=common.read_spec(spec),
        vocabulary=vocabulary,
        cache=None if no_cache else cache or default_cache() / "engines",
        overwrite=overwrite,
        threads=threads,
        progress=common.show_progress(quiet),
    )
    common.show(engine_report(found, commands=False))
    for path in report or []:
        write_report(engine_report(found, commands=True), path)


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
    for size, times in given.items():
        if times not in (1, count):
            raise InputError(
                f"{size} is given {times} times, another size {count} times; give each "
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


COMMAND = Command(
    "trt",
    trt_command,
    examples=(
        "hat-export trt hat.ckpt engines/ --fp16",
        "hat-export trt bundle/ engines/ --precision int8 --calibration data.json",
    ),
    renamed={
        "--calibration-images": "--calibration-image-count",
        **{f"--{name}": f"--precision {name}" for name in ("bf16", "fp32", "int8", "fp8")},
    },
)
