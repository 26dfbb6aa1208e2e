"""Which passes make which graphs: lists that the form of attention and the precision choose from.

Every graph is built once, in standard ONNX (:mod:`~hat_export.export.swin`,
:mod:`~hat_export.export.bert`, :mod:`~hat_export.export.alignment`); all else is made from that.
TensorRT's lists are in :mod:`hat_export.tensorrt.lower`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from hat_export.export.add_layer_norm import FuseAddLayerNorm
from hat_export.export.alignment import alignment_graph
from hat_export.export.attention import AttentionForm, DecomposeAttention
from hat_export.export.bert import text_graph
from hat_export.export.graph import GraphBuilder
from hat_export.export.linear_layers import FuseLinear
from hat_export.export.masked_attention import FuseMaskedAttention
from hat_export.export.mixed_precision import MixedPrecision
from hat_export.export.naming import NameByScope
from hat_export.export.passes import Pass, Report, run_passes
from hat_export.export.swin import image_graph
from hat_export.export.window_attention import FuseWindowAttention
from hat_export.spec import ModelSpec

Weights = Mapping[str, np.ndarray]

#: Graph -> what builds it in standard ONNX, in float32.
BUILDERS: dict[str, Callable[[ModelSpec, Weights], GraphBuilder]] = {
    "image": image_graph,
    "text": text_graph,
    "alignment": lambda spec, weights: alignment_graph(spec),
}

#: Graph -> its attention layers; those with any are encoders and go through the passes.
ATTENTION_LAYERS: dict[str, Callable[[ModelSpec], int]] = {
    "image": lambda spec: sum(spec.depths),
    "text": lambda spec: max(spec.text_level_layers) + 1,
    "alignment": lambda spec: 0,
}

#: Form of attention -> the passes over an encoder's standard graph. ``packed`` is what a CPU runs
#: fastest in ONNX Runtime (``--target onnxruntime``).
FORMS: dict[AttentionForm, tuple[Pass, ...]] = {
    "onnx": (),
    "decomposed": (DecomposeAttention(), NameByScope()),
    "packed": (
        FuseWindowAttention(),
        FuseMaskedAttention(),
        FuseAddLayerNorm(),
        FuseLinear(),
        NameByScope(),
    ),
}

#: Precision -> the passes after those, given the nodes that stay in float32 with the reason.
LOWERINGS: dict[str, Callable[[Mapping[str, str]], tuple[Pass, ...]]] = {
    "fp32": lambda kept: (),
    "fp16": lambda kept: (MixedPrecision("fp16", kept),),
    "bf16": lambda kept: (MixedPrecision("bf16", kept),),
}


def build_graph(
    name: str, spec: ModelSpec, weights: Weights, form: AttentionForm
) -> tuple[onnx.ModelProto, list[Report]]:
    """A graph in float32.

    Args:
        name: ``image``, ``text`` or ``alignment``.
        spec: The architecture.
        weights: float32 state dict of :class:`hat_export.model.hat.HAT`.
        form: How attention is written.

    Returns:
        The model, and what the builder and each pass report.

    Raises:
        PassError: if a pass can't be applied or fails.
    """
    model = BUILDERS[name](spec, weights).model({"hat_export.graph": name})
    built = Report.of_built(model)
    passes = FORMS[form] if ATTENTION_LAYERS[name](spec) else ()
    model, reports = run_passes(passes, model)
    return model, [built, *reports]
