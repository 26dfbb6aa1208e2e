"""The passes that take a packed graph's linear layers apart and fuse them again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hat_export.export.linear_layers import FuseLinear, SplitLinear
from hat_export.export.pipelines import build_graph
from hat_export.kernels import operators
from hat_export.model.checkpoint import load_hat


@pytest.fixture(scope="module", params=["image", "text"])
def graphs(
    request: pytest.FixtureRequest, tiny_checkpoint: Path
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """An encoder in custom operators, and the standard graph that it was made from."""
    loaded = load_hat(tiny_checkpoint)
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    packed, standard = (
        build_graph(request.param, loaded.spec, weights, form)[0] for form in ("packed", "onnx")
    )
    return packed, standard


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def linear(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Linear"]


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(operators.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    if model.graph.name == "image_encoder":
        shape = [dim.dim_value or 2 for dim in model.graph.input[0].type.tensor_type.shape.dim]
        return session.run(None, {"pixel_values": random.standard_normal(shape, np.float32)})
    ids = random.integers(1, 50, (3, 7))
    return session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})


def test_apart_and_together_again(graphs: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    packed, standard = graphs
    gelus = [helper.get_node_attr_value(node, "gelu") for node in linear(packed)]
    assert sum(gelus) == kinds(standard)["Gelu"]
    apart, _, report = SplitLinear()(packed)
    split = report.counts["Linear"]
    assert split == kinds(packed)["Linear"] > 0
    assert kinds(apart)["Linear"] == 0
    assert kinds(apart)["MatMul"] == split
    again, _, report = FuseLinear()(apart)
    assert report.counts["Linear"] == split
    assert [node.SerializeToString() for node in again.graph.node] == [
        node.SerializeToString() for node in packed.graph.node
    ]
    stored = {t.name: numpy_helper.to_array(t) for t in again.graph.initializer}
    assert set(stored) == {t.name for t in packed.graph.initializer}
    for tensor in packed.graph.initializer:
        np.testing.assert_array_equal(stored[tensor.name], numpy_helper.to_array(tensor))
    assert again.metadata_props == packed.metadata_props
    assert {item.domain: item.version for item in again.opset_import} == {
        item.domain: item.version for item in packed.opset_import
    }


def test_apart_computes_the_same(graphs: tuple[onnx.ModelProto, onnx.ModelProto]) -> None:
    packed, standard = graphs
    expected = run(standard)
    for model in (packed, SplitLinear()(packed).model):
        for ours, theirs in zip(run(model), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)


def test_what_is_no_linear_layer_stays() -> None:
    """A product used twice, a sum that isn't with a stored vector, a weight of another name."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "a.weight^T")
    other = numpy_helper.from_array(np.eye(4, dtype=np.float32), "table")
    bias = numpy_helper.from_array(np.zeros(4, np.float32), "a.bias")
    value = [helper.make_tensor_value_info(name, 1, [2, 4]) for name in ("x", "y", "z")]
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight^T"], ["p"], name="a/MatMul"),
        helper.make_node("Add", ["p", "a.bias"], ["q"], name="a/Add"),
        helper.make_node("Add", ["p", "q"], ["r"], name="b/Add"),
        helper.make_node("MatMul", ["r", "table"], ["y"], name="b/MatMul"),
        helper.make_node("MatMul", ["y", "a.weight^T"], ["s"], name="c/MatMul"),
        helper.make_node("Add", ["s", "x"], ["z"], name="c/Add"),
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], [weight, other, bias])
    model, _, report = FuseLinear()(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    )
    assert report.counts["Linear"] == 2
    assert [node.name for node in model.graph.node] == [
        *("a/Linear", "a/Add", "b/Add", "b/MatMul", "c/Linear", "c/Add"),
    ]
    assert [len(node.input) for node in model.graph.node if node.op_type == "Linear"] == [2, 2]
