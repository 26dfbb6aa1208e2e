"""The base of graph passes: what they require, what they promise, and what happens if they don't.

Then the pipelines on the tiny model: every pass gives the same function as the graph before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from hat_export.errors import BundleError, FusionError, PassError
from hat_export.export import pipelines
from hat_export.export.attention import FUSED_OPERATORS, DecomposeAttention
from hat_export.export.graph import GraphBuilder
from hat_export.export.linear_layers import FuseLinear
from hat_export.export.masked_attention import FuseMaskedAttention
from hat_export.export.mixed_precision import MixedPrecision
from hat_export.export.naming import NameByScope
from hat_export.export.onnx_export import export_onnx
from hat_export.export.passes import Pass, Report, count_operators, run_passes
from hat_export.export.window_attention import FuseWindowAttention
from hat_export.kernels import operators
from hat_export.model.checkpoint import LoadedCheckpoint, load_hat
from hat_export.runtime.onnx_graphs import copy_of, with_nodes, with_tensors
from hat_export.tensorrt.lower import PIPELINES
from hat_export.tensorrt.quantize import QuantizeMatMuls

FORMS = ("onnx", "decomposed", "packed")
ENCODERS = ("image", "text")


def small() -> onnx.ModelProto:
    """x -> Linear -> Gelu -> y."""
    graph = GraphBuilder("small")
    x = graph.input("x", np.float32, ["rows", 4])
    weights = {"fc.weight": np.eye(4, dtype=np.float32), "fc.bias": np.ones(4, np.float32)}
    with graph.scope("layer"):
        made = graph.node("Gelu", [graph.linear(x, "fc", weights)])
    graph.output(made, "y", np.float32, ["rows", 4])
    return graph.model({})


class Planted(Pass):
    """A pass that does what a test says."""

    operators = ("Relu",)

    def __init__(self, what: str) -> None:
        self.what = what

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        nodes = [copy_of(node) for node in model.graph.node]
        report.counts["Relu"] = 1
        gelu = next(node for node in nodes if node.op_type == "Gelu")
        gelu.op_type = "Relu"
        result = with_nodes(model, nodes)
        match self.what:
            case "nothing wrong":
                pass
            case "input":
                model.graph.node[0].name = "other"
            case "weights of the input":
                tensor = model.graph.initializer[0]
                array = numpy_helper.to_array(tensor) * np.float32(2)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            case "count":
                report.counts["Relu"] = 2
            case "no count":
                report.counts.clear()
            case "not modified":
                report.counts.clear()
                return result, False
            case "output":
                result.graph.output[0].name = "z"
                result.graph.node[-1].output[0] = "z"
            case "order":
                first, *others = list(result.graph.node)
                del result.graph.node[:]
                result.graph.node.extend([*others, first])
            case "name":
                result.graph.node[1].name = result.graph.node[0].name
            case "value twice":
                result.graph.node[1].output[0] = result.graph.node[0].output[0]
            case "unread":
                result.graph.initializer.append(numpy_helper.from_array(np.ones(2), "lost"))
            case "promise":
                result.graph.node[-1].op_type = "Neg"
        return result, True

    def ensures(self, model: onnx.ModelProto) -> Iterator[str]:
        if any(node.op_type == "Neg" for node in model.graph.node):
            yield "it has a Neg"


def test_a_pass_that_keeps_its_promise_goes_through() -> None:
    model = small()
    before = model.SerializeToString()
    result, modified, report = Planted("nothing wrong")(model)
    assert modified
    assert model.SerializeToString() == before
    assert report.name == "Planted"
    assert report.counts == {"Relu": 1}
    assert report.change == {"Relu": 1, "Gelu": -1} | dict.fromkeys(
        {node.op_type for node in result.graph.node} - {"Relu", "Gelu"}, 0
    )
    assert (report.name, report.counts, report.left) == ("Planted", {"Relu": 1}, {})


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("input", "it changed the model that it was given"),
        ("weights of the input", "it changed the model that it was given"),
        ("count", "it counts 2 Relu, the graph has 1 more than before"),
        ("no count", "it says modified and counts {}"),
        ("not modified", "it says not modified and gives another graph"),
        ("output", "its outputs aren't those of the graph before"),
        ("order", "layer/Add reads layer/MatMul:0 before it is made"),
        ("name", "2 nodes are named layer/MatMul"),
        ("value twice", "2 values are named layer/MatMul:0"),
        ("unread", "1 stored tensors are never read, the first lost"),
        ("promise", "it has a Neg"),
    ],
)
def test_a_pass_that_breaks_its_promise_is_caught(what: str, message: str) -> None:
    with pytest.raises(PassError, match=r"^Planted broke the graph 'small': ") as caught:
        Planted(what)(small())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def old_opset() -> onnx.ModelProto:
    model = small()
    model.opset_import[0].version = 17
    return model


def unnamed() -> onnx.ModelProto:
    model = small()
    model.graph.node[0].ClearField("name")
    return model


def half() -> onnx.ModelProto:
    return MixedPrecision("fp16", {})(small()).model


def other_attention() -> onnx.ModelProto:
    model = small()
    node = helper.make_node("Attention", ["x", "x", "x"], ["unused"], name="odd/Attention")
    model.graph.node.append(node)
    return model


@pytest.mark.parametrize(
    ("wanted", "model", "message"),
    [
        (DecomposeAttention(), old_opset, "it is of opset 17, expected 23 or newer"),
        (DecomposeAttention(), other_attention, "odd/Attention has more than query"),
        (FuseLinear(), unnamed, "1 of its nodes have no name"),
        (NameByScope(), unnamed, "1 of its nodes have no name"),
        (MixedPrecision("bf16", {}), half, "weights are in a low precision already"),
        (QuantizeMatMuls("int8", ["layer/MatMul"], {}), small, "the range of x isn't known"),
        (QuantizeMatMuls("int8", ["layer/Other"], {}), small, "it has no MatMul layer/Other"),
    ],
)
def test_a_pass_says_what_a_graph_lacks(wanted: Pass, model: Any, message: str) -> None:
    with pytest.raises(PassError, match=f"^{wanted.name} can't be applied to the graph 'small'"):
        wanted(model())
    with pytest.raises(PassError) as caught:
        wanted(model())
    assert message in str(caught.value)
    assert str(caught.value).endswith("export the checkpoint again with this version")


def test_nothing_to_do_gives_the_model_back() -> None:
    model = small()
    for each in (DecomposeAttention(), FuseWindowAttention(), FuseMaskedAttention()):
        result, modified, report = each(model)
        assert result is model
        assert not modified
        assert (report.name, report.counts.total()) == (each.name, 0)


def test_names_are_given_anew_and_equal_constants_are_stored_once() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["p"], name="a/some/Mul"),
        helper.make_node("Mul", ["p", "again"], ["q"], name="a/Mul_7"),
        helper.make_node("Mul", ["q", "w"], ["r"], name="b/Mul"),
        helper.make_node("Identity", ["r"], ["y"], name="y/output"),
    ]
    tensors = [
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("w", [1.0]), ("two", 2.0), ("again", 2.0))
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], tensors)
    named = NameByScope()(helper.make_model(graph)).model.graph
    assert [node.name for node in named.node] == ["a/Mul", "a/Mul_1", "b/Mul", "y/output"]
    assert [list(node.input) for node in named.node] == [
        *(["x", "constant_0"], ["a/Mul:0", "constant_0"], ["a/Mul_1:0", "w"], ["b/Mul:0"]),
    ]
    assert [tensor.name for tensor in named.initializer] == ["constant_0", "w"]


# The pipelines


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> LoadedCheckpoint:
    return load_hat(tiny_checkpoint)


def standard(loaded: LoadedCheckpoint, name: str) -> onnx.ModelProto:
    weights = {key: tensor.numpy() for key, tensor in loaded.model.state_dict().items()}
    return pipelines.build_graph(name, loaded.spec, weights, "onnx")[0]


def run(model: onnx.ModelProto) -> list[np.ndarray]:
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(str(operators.library_path()))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(0)
    if model.graph.name == "image_encoder":
        pixels = random.standard_normal((2, 3, 64, 64), np.float32)
        return session.run(None, {"pixel_values": pixels})
    mask = (np.arange(7) < np.array([[7], [1], [4]])).astype(np.int64)
    ids = random.integers(1, 50, mask.shape)
    return session.run(None, {"input_ids": ids, "attention_mask": mask})


def compare(model: onnx.ModelProto, expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(run(model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ENCODERS)
def test_every_pass_of_a_form_gives_the_same_function(
    loaded: LoadedCheckpoint, name: str, form: Any
) -> None:
    model = standard(loaded, name)
    expected, reports = run(model), [Report.of_built(model)]
    for each in pipelines.FORMS[form]:
        model, _, report = each(model)
        reports.append(report)
        compare(model, expected)
    layers = pipelines.ATTENTION_LAYERS[name](loaded.spec)
    fused = count_operators(FUSED_OPERATORS[form], reports)
    assert fused == (0 if form == "decomposed" else layers)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert fused == sum(kinds[kind] for kind in FUSED_OPERATORS[form])
    assert kinds["Softmax"] == (layers if form == "decomposed" else 0)


def test_tensorrts_lists_name_every_precision_of_its_engines() -> None:
    assert set(PIPELINES) == {"fp32", "fp16", "bf16", "int8", "fp8"}
    assert set(pipelines.LOWERINGS) == {"fp32", "fp16", "bf16"}


def changed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with one initializer a little different."""
    array = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name).copy()
    array.reshape(-1)[-1] += np.float32(0.5)
    return with_tensors(model, {name: array})


def test_a_bias_that_the_operator_has_not_leaves_attention_as_it_is(
    loaded: LoadedCheckpoint,
) -> None:
    """In the shifted block another mask in the last window; all else is fused around it."""
    bias = "vit_model.layers.0.blocks.1.attn.bias"
    model = changed(standard(loaded, "image"), bias)
    result, modified, report = FuseWindowAttention()(model)
    assert modified
    assert report.counts["WindowAttention"] == pipelines.ATTENTION_LAYERS["image"](loaded.spec) - 1
    node = "vit_model.layers.0.blocks.1/Attention"
    assert report.left == {node: f"the bias of {node} isn't position and a shift by 1"}
    compare(result, run(model))


def test_tokens_in_another_order_than_windows_leave_attention_as_it_is(
    loaded: LoadedCheckpoint,
) -> None:
    model = standard(loaded, "image")
    gather = next(n for n in model.graph.node if n.op_type == "Gather" and n.input[1] in stored(n))
    places = next(t for t in model.graph.initializer if t.name == gather.input[1])
    order = numpy_helper.to_array(places).copy()
    order[:2] = order[1::-1]
    places.CopyFrom(numpy_helper.from_array(order, places.name))
    result, _, report = FuseWindowAttention()(model)
    left = "vit_model.layers.0.blocks.0/Attention"
    assert report.left[left] == f"the tokens of {left} aren't in the order of windows"
    compare(result, run(model))


def test_another_padding_mask_leaves_attention_as_it_is(loaded: LoadedCheckpoint) -> None:
    model = standard(loaded, "text")
    nodes = {node.name: node for node in model.graph.node}
    constant = nodes["text_transformer.mask/Mul"].input[1]
    result, modified, report = FuseMaskedAttention()(changed(model, constant))
    assert not modified
    assert result.graph.node == model.graph.node
    assert set(report.left.values()) == {
        "text_transformer.mask/Mul has another constant than -10000.0"
    }
    assert len(report.left) == pipelines.ATTENTION_LAYERS["text"](loaded.spec)


class WrongScale(Pass):
    """A planted fault that no structure shows: attention twice as sharp."""

    def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
        nodes = [copy_of(node) for node in model.graph.node]
        for node in nodes:
            if node.op_type == "Attention":
                node.attribute[0].f *= 2
                report.counts["Attention"] += 1
        return with_nodes(model, nodes), True


def test_a_pass_that_computes_something_else_fails_the_export(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipelines.FORMS, "onnx", (WrongScale(),))
    with pytest.raises(BundleError, match="self-test failed"):
        export_onnx(tiny_checkpoint, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()


def test_a_missing_fusion_says_why(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blurred(FuseWindowAttention):
        """Sees the bias of one layer changed."""

        def rewrite(self, model: onnx.ModelProto, report: Report) -> tuple[onnx.ModelProto, bool]:
            name = "vit_model.layers.0.blocks.1.attn.bias"
            stored = {tensor.name for tensor in model.graph.initializer}
            return super().rewrite(changed(model, name) if name in stored else model, report)

    packed = pipelines.FORMS["packed"]
    monkeypatch.setitem(pipelines.FORMS, "packed", (Blurred(), *packed[1:]))
    with pytest.raises(FusionError, match=r"9 of 10 .*; left alone: vit.*blocks\.1/Attention: "):
        export_onnx(
            tiny_checkpoint, tmp_path / "out", attention="packed", require_fused=True, threads=1
        )


def stored(node: onnx.NodeProto) -> tuple[str, ...]:
    """The index of a node that puts the tokens of the patch embedding into window order."""
    return tuple(node.input[1:]) if node.name == "vit_model.patch_embed/Gather" else ()


def test_passes_run_one_after_the_other() -> None:
    model, reports = run_passes([FuseLinear(), NameByScope()], small())
    assert [report.name for report in reports] == ["FuseLinear", "NameByScope"]
    assert [node.name for node in model.graph.node] == ["layer/Linear", "y/output"]
    assert [item.domain for item in model.opset_import] == ["", "hat_export"]
