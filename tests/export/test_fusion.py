"""Fusion can't be lost in silence: what the graphs are made of, and what a runtime makes of it.

Graphs are built, not traced, so that a new torch or timm can't take a fused operator apart. A new
ONNX Runtime could: an operator that it has no kernel for is replaced by the pieces that define it.
These tests say which layer and which pattern that hits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest

from hat_export.bundle.bundle import Bundle
from hat_export.kernels import operators
from hat_export.spec import LEVELS

#: Operators of one layer, by form and graph; the last block of a stage may have one AddLayerNorm
#: less or more, as it ends in a level or in the next stage.
IMAGE_BLOCK = {
    "onnx": {"Attention": 1, "Gelu": 1, "LayerNormalization": 2, "MatMul": 4, "Softmax": 0},
    "packed": {"WindowAttention": 1, "Linear": 4, "MatMul": 0, "Softmax": 0},
}
TEXT_LAYER = {
    "onnx": {"Attention": 1, "Gelu": 1, "LayerNormalization": 2, "MatMul": 4, "Softmax": 0},
    "packed": {"MaskedAttention": 1, "AddLayerNorm": 2, "Linear": 4, "MatMul": 0, "Softmax": 0},
}
LAYER = {
    "image": re.compile(r"vit_model\.layers\.\d+\.blocks\.\d+"),
    "text": re.compile(r"text_transformer\.encoder\.layer\.\d+"),
}
#: What attention, GELU and LayerNorm would be taken apart into.
PIECES = ("Softmax", "Erf", "Tanh", "ReduceMean", "IsNaN", "Where", "Slice", "Pad")


@pytest.fixture(scope="module", params=["onnx", "packed"])
def bundle(request: pytest.FixtureRequest, exported: Callable[..., Path]) -> Bundle:
    options = {} if request.param == "onnx" else {"attention": request.param}
    return Bundle.read(exported("tiny", **options))


def operators_by_layer(model: onnx.ModelProto, graph: str) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        if layer := LAYER[graph].match(node.name):
            found.setdefault(layer.group(), Counter())[node.op_type] += 1
    return found


@pytest.mark.parametrize("graph", ["image", "text"])
def test_every_layer_is_the_fused_operators(bundle: Bundle, graph: str) -> None:
    form = bundle.manifest.attention_form
    expected = (IMAGE_BLOCK if graph == "image" else TEXT_LAYER)[form]
    layers = operators_by_layer(onnx.load(bundle.graph_path(graph)), graph)
    assert len(layers) == bundle.manifest.graphs[graph].attention_expected
    source = "pipelines" if form == "packed" else {"image": "swin", "text": "bert"}[graph]
    for layer, found in layers.items():
        for kind, count in expected.items():
            assert found[kind] == count, (
                f"{layer} in form {form}: {found[kind]} {kind} instead of {count}; see "
                f"hat_export/export/{source}.py. All: {dict(found)}"
            )


@pytest.mark.parametrize("graph", ["image", "text"])
def test_the_runtime_keeps_them_fused(bundle: Bundle, graph: str, tmp_path: Path) -> None:
    """Of the graph as ONNX Runtime runs it: kernels it has none for are in pieces there."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    options.register_custom_ops_library(str(operators.library_path()))
    onnxruntime.InferenceSession(
        str(bundle.graph_path(graph)), options, providers=["CPUExecutionProvider"]
    )
    found = Counter(n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node)
    layers = bundle.manifest.graphs[graph].attention_expected
    version = f"ONNX Runtime {onnxruntime.__version__}"
    fused = sum(found[kind] for kind in ("Attention", "WindowAttention", "MaskedAttention"))
    assert fused == layers, (
        f"{version} runs {fused} of {layers} attention layers of the {graph} graph as one "
        "operator; the pattern is attend() in hat_export/export/attention.py"
    )
    if bundle.manifest.attention_form == "onnx":
        gelus = found["Gelu"] + found["BiasGelu"]
        assert gelus == layers, f"{version} runs {gelus} of {layers} GELUs as one operator"
    else:
        products = 4 * layers + LEVELS
        assert found["Linear"] >= products, f"{version}: {found['Linear']} of {products} Linear"
    apart = {kind: found[kind] for kind in PIECES if found[kind]}
    # The text graph cuts the position table to the captions' length.
    assert apart == ({"Slice": 1} if graph == "text" else {}), f"{version} takes apart: {apart}"
