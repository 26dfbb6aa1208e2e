"""A bundle's graphs in the types that a TensorRT engine shall compute in.

TensorRT takes types from the graph (strong typing), so a precision is a rewritten graph. It stays
an ONNX graph of standard operators: what is built is what runs on a CPU in the emulation backend,
and its recall can be measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
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
from hat_export.export.attention import FUSED_OPERATORS
from hat_export.export.graph_file import EXTERNAL_DATA_BYTES, write_graph
from hat_export.export.mixed_precision import Feed, find_kept, to_mixed_precision
from hat_export.tensorrt.decompose import decompose_fp32_attention
from hat_export.tensorrt.quantize import (
    QUANTIZED_FORMATS,
    activation_ranges,
    quantize,
    quantized_products,
)


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
        if name == "alignment" and fp16_alignment:
            model = fp16_products(model)
        elif info.attention_expected and source.manifest.precision != precision:
            progress.step(f"writing the {name} graph in {precision}")
            try:
                model, kept = _lowered(model, precision, name, feeds)
            except ValueError as error:
                raise BundleError(f"{source.path}: {error}; export the checkpoint again") from None
        written = write_graph(
            decompose_fp32_attention(model),
            folder,
            name,
            info.attention_expected,
            FUSED_OPERATORS["onnx"],
            EXTERNAL_DATA_BYTES,
            kept,
        )
        graphs[name] = written
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


def _lowered(
    model: onnx.ModelProto,
    precision: str,
    name: str,
    feeds: Callable[[], Mapping[str, Iterable[Feed]]],
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """An encoder graph in a low precision, and the nodes that stay in float32."""
    around = "fp16" if precision in QUANTIZED_FORMATS else precision
    kept = find_kept(model, around, feeds()[name])
    if precision in QUANTIZED_FORMATS:
        products = [product for product in quantized_products(model) if product not in kept]
        ranges = activation_ranges(model, products, precision, feeds()[name])
        model = quantize(model, precision, products, ranges)
    return to_mixed_precision(model, around, kept), kept


def fp16_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph whose matrix products take and give float16, and nothing else does.

    Features of an fp16 encoder lose nothing by that: they are float16 numbers.
    """
    kept = {node.name: "float32 by design" for node in model.graph.node if node.op_type != "MatMul"}
    return to_mixed_precision(model, "fp16", kept)
