"""Tensors inside a graph, as it computes them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from hat_export.export.observe import (
    largest_magnitudes,
    mark_outputs,
    observe_tensors,
    open_graph,
)

FEEDS = [{"x": np.array([-3.0, 1.0], np.float32)}, {"x": np.array([2.0, 0.5], np.float32)}]


def doubled_and_squared() -> onnx.ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("Mul", ["twice", "twice"], ["square"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("square", TensorProto.FLOAT, [2])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def test_marked_tensors_come_out_once_each() -> None:
    model = doubled_and_squared()
    mark_outputs(model, ["twice", "square", "twice"])
    assert [output.name for output in model.graph.output] == ["square", "twice"]
    seen = list(observe_tensors(open_graph(model, threads=1), ["twice", "square"], FEEDS))
    for feed, found in seen:
        np.testing.assert_array_equal(found["twice"], 2 * feed["x"])
        np.testing.assert_array_equal(found["square"], 4 * feed["x"] ** 2)
    assert len(seen) == len(FEEDS)


def test_largest_magnitudes_over_all_data_and_nan_comes_through() -> None:
    model = doubled_and_squared()
    before = model.SerializeToString()
    values = ["twice", "square"]
    assert largest_magnitudes(model, values, FEEDS, 1) == {"twice": 6.0, "square": 36.0}
    broken = [*FEEDS, {"x": np.array([np.nan, 0.0], np.float32)}, FEEDS[0]]
    assert np.isnan(list(largest_magnitudes(model, values, broken, 1).values())).all()
    assert model.SerializeToString() == before


def test_a_session_has_the_threads_of_its_caller(tmp_path) -> None:
    session = open_graph(doubled_and_squared(), threads=1, folder=tmp_path)
    assert session.get_session_options().intra_op_num_threads == 1
    assert (tmp_path / "observed.onnx").is_file()
