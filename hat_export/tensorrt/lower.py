"""A bundle's graphs in the types that a TensorRT engine shall compute in.

TensorRT takes types from the graph (strong typing), so a precision is a rewritten graph. It stays
an ONNX graph of standard operators: what is built is what runs on a CPU in the emulation backend,
and its recall can be measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from hat_export.base.progress import Progress
from hat_export.bundle.bundle import (
    FORMAT_VERSION,
    GRAPHS,
    Bundle,
    Manifest,
    list_files,
    write_manifest,
)
from hat_export.errors import BundleError, InputError
from hat_export.export.attention import FUSED_OPERATORS, DecomposeAttention
from hat_export.export.graph_file import EXTERNAL_DATA_BYTES, write_graph
from hat_export.export.mixed_precision import MixedPrecision, find_kept
from hat_export.export.observe import Feed
from hat_export.export.passes import Pass, count_operators, run_passes
from hat_export.tensorrt.quantize import (
    QUANTIZED_FORMATS,
    QuantizeMatMuls,
    activation_ranges,
    quantized_products,
)


@dataclass(frozen=True)
class Found:
    """What the inputs of an encoder's calibration showed.

    Attributes:
        kept: Nodes that stay in float32, with the reason.
        products: Matmuls that can be computed in the quantized format.
        ranges: Their inputs, to the largest magnitude that each shall hold.
    """

    kept: Mapping[str, str] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    ranges: Mapping[str, float] = field(default_factory=dict)


def _quantized(scheme: str) -> Callable[[Found], tuple[Pass, ...]]:
    return lambda found: (
        QuantizeMatMuls(scheme, found.products, found.ranges),
        MixedPrecision("fp16", found.kept),
        DecomposeAttention(),
    )


#: Precision of the engines -> the passes over an encoder's standard graph in float32.
PIPELINES: dict[str, Callable[[Found], tuple[Pass, ...]]] = {
    "fp32": lambda found: (DecomposeAttention(),),
    "fp16": lambda found: (MixedPrecision("fp16", found.kept), DecomposeAttention()),
    "bf16": lambda found: (MixedPrecision("bf16", found.kept), DecomposeAttention()),
    "int8": _quantized("int8"),
    "fp8": _quantized("fp8"),
}


def check_source(bundle: Bundle, precision: str) -> None:
    """Refuse a bundle whose graphs TensorRT can't take, or can't take in a precision.

    Raises:
        InputError: with the remedy.
    """
    manifest = bundle.manifest
    if manifest.attention_form == "packed":
        raise InputError(
            f"{bundle.path}: its graphs hold operators for ONNX Runtime on a CPU; export the "
            "checkpoint without --target onnxruntime"
        )
    if manifest.precision not in ("fp32", precision):
        raise InputError(
            f"{bundle.path}: its graphs are {manifest.precision} already; make {precision} "
            "engines from an fp32 bundle or the checkpoint"
        )


def lower_bundle(
    source: Bundle,
    folder: Path,
    precision: str,
    feeds: Callable[[], Mapping[str, Iterable[Feed]]],
    fp16_alignment: bool,
    threads: int,
    progress: Progress,
) -> Manifest:
    """Write a bundle's content, its encoders in another precision, into a new folder.

    Args:
        source: fp32, or already in the precision.
        folder: Where the files go; ``manifest.json`` too.
        precision: What the encoders shall compute in; the alignment stays float32: it divides by
            norms, and the sum of squares before it overflows fp16.
        feeds: Gives inputs of the ``image`` and ``text`` graphs on which to look for ranges.
        fp16_alignment: Whether the alignment's products take and give float16 nevertheless.
        threads: Threads of the runs on those inputs.
        progress: Told before each step.

    Returns:
        The manifest that was written.

    Raises:
        BundleError: if the graphs give no finite results in float32.
    """
    source.copy_to(folder)
    form = "decomposed" if precision == "fp32" else source.manifest.attention_form
    graphs = {}
    for name in GRAPHS:
        info = source.manifest.graphs[name]
        model = onnx.load(source.graph_path(name))
        kept = dict(info.kept_fp32)
        passes = PIPELINES["fp32"](Found())
        if name == "alignment" and fp16_alignment:
            passes = (fp16_matmuls(model), *passes)
        elif info.attention_expected and source.manifest.precision != precision:
            progress.step(f"writing the {name} graph in {precision}")
            try:
                found = _found(model, precision, name, feeds, threads)
            except ValueError as error:
                raise BundleError(f"{source.path}: {error}; export the checkpoint again") from None
            kept, passes = dict(found.kept), PIPELINES[precision](found)
        model, reports = run_passes(passes, model)
        fused = info.attention_fused + count_operators(FUSED_OPERATORS["onnx"], reports)
        graphs[name] = write_graph(
            model, folder, name, info.attention_expected, fused, EXTERNAL_DATA_BYTES, kept
        )
    manifest = replace(
        source.manifest,
        format_version=FORMAT_VERSION,
        precision=precision,
        attention_form=form,
        graphs=graphs,
        files=list_files(folder),
        engines={},
    )
    write_manifest(folder, manifest)
    return manifest


def _found(
    model: onnx.ModelProto,
    precision: str,
    name: str,
    feeds: Callable[[], Mapping[str, Iterable[Feed]]],
    threads: int,
) -> Found:
    """Run calibration inputs through an encoder's float32 graph."""
    quantizes = precision in QUANTIZED_FORMATS
    kept = find_kept(model, "fp16" if quantizes else precision, feeds()[name], threads)
    if not quantizes:
        return Found(kept)
    products = tuple(product for product in quantized_products(model) if product not in kept)
    ranges = activation_ranges(model, products, precision, feeds()[name], threads)
    return Found(kept, products, ranges)


def fp16_matmuls(model: onnx.ModelProto) -> MixedPrecision:
    """The pass after which a float32 graph's matmuls take and give float16, and nothing else does.

    Features of an fp16 encoder lose nothing by that: they are float16 numbers.
    """
    kept = {node.name: "float32 by design" for node in model.graph.node if node.op_type != "MatMul"}
    return MixedPrecision("fp16", kept)
