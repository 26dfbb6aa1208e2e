"""The alignment kernel as an ONNX Runtime operator: the same bits as the kernel itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from hat_export.errors import BackendUnavailableError
from hat_export.export.alignment import alignment_graph, alignment_operator_graph
from hat_export.kernels import alignment_cpu, operators
from hat_export.spec import ModelSpec
from hat_reference_inputs import KERNEL_CASES, kernel_case

DIRECTIONS = ("i2t", "t2i")
#: A 64-pixel image's regions per level.
REGIONS = (64, 16, 4)
#: What ONNX Runtime raises for a model that it can't load.
REFUSED = (
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
    onnxruntime.capi.onnxruntime_pybind11_state.RuntimeException,
)
INVALID = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument


def small_spec(direction: Any = "i2t", dim: int = 24, softmax_lambda: float = 9.0) -> ModelSpec:
    return ModelSpec(
        image_size=64,
        resize_size=72,
        window_size=2,
        dim=dim,
        direction=direction,
        softmax_lambda=softmax_lambda,
    )


def open_session(
    model: onnx.ModelProto, threads: int = 1, library: bool = True
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(operators.library_path()))
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def loose_model(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with inputs of any shape, so that the operator's own checks are reached."""
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")
    return model


def mask_of(lengths: Sequence[int] | np.ndarray, words: int) -> np.ndarray:
    return (np.arange(words) < np.asarray(lengths)[:, None]).astype(np.int64)


def random_feed(
    seed: int, images: int, captions: int, words: int, dim: int = 24
) -> dict[str, np.ndarray]:
    """Features of every level; rows of captions past their length hold noise."""
    random = np.random.default_rng(seed)
    feed = {
        f"image_level{level}": random.standard_normal((images, regions, dim), np.float32)
        for level, regions in enumerate(REGIONS, start=1)
    }
    for level in (1, 2, 3):
        shape = (captions, words, dim)
        feed[f"text_level{level}"] = random.standard_normal(shape, np.float32)
    lengths = random.integers(1, words + 1, captions)
    lengths[:1] = words
    return feed | {"attention_mask": mask_of(lengths, words)}


def kernel_scores(feed: dict[str, np.ndarray], spec: ModelSpec) -> np.ndarray:
    """The kernel through its Python binding, in the official order of the sum."""
    total: np.ndarray | None = None
    for level in (3, 1, 2):
        regions = feed[f"image_level{level}"]
        captions = alignment_cpu.prepare_captions(
            feed[f"text_level{level}"], feed["attention_mask"].sum(1)
        )
        total = alignment_cpu.score(
            regions,
            alignment_cpu.region_norms(regions),
            captions,
            spec.softmax_lambda,
            spec.direction,
            total=total,
        )
    assert total is not None
    return total


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_golden_cases(golden_kernel: dict[str, np.ndarray], name: str, direction: Any) -> None:
    """The same features at each level give three times the golden score."""
    regions, words, lengths, softmax_lambda = kernel_case(name)
    spec = small_spec(direction, regions.shape[2], softmax_lambda)
    feed = {f"image_level{level}": regions for level in (1, 2, 3)}
    feed |= {f"text_level{level}": words for level in (1, 2, 3)}
    feed["attention_mask"] = mask_of(lengths, words.shape[1])
    model = loose_model(alignment_operator_graph(spec).model({}))
    scores = open_session(model, threads=2).run(["scores"], feed)[0]
    assert scores.tobytes() == kernel_scores(feed, spec).tobytes()
    expected = golden_kernel[f"{name}/{direction}_f64"]
    known = ~np.isnan(expected)  # the official t2i can't score a caption of one word
    # golden/README.md: 2e-6 a level, 5e-6 at lambda 100
    tolerance = 3 * (5e-6 if name == "lambda_100" else 2e-6)
    np.testing.assert_allclose(scores[known], 3 * expected[known], rtol=0, atol=tolerance)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equals_the_graph_of_standard_operators(direction: Any) -> None:
    spec = small_spec(direction)
    feed = random_feed(1, 5, 7, 9)
    standard = open_session(alignment_graph(spec).model({}), library=False)
    fused = open_session(alignment_operator_graph(spec).model({}))
    for ours, theirs in zip(fused.get_inputs(), standard.get_inputs(), strict=True):
        assert (ours.name, ours.type, ours.shape) == (theirs.name, theirs.type, theirs.shape)
    assert [value.name for value in fused.get_outputs()] == ["scores"]
    # float32 in both: 2e-6 for each of three levels on both sides
    np.testing.assert_allclose(
        fused.run(None, feed)[0], standard.run(None, feed)[0], rtol=0, atol=12e-6
    )


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_batch_and_length_are_dynamic_and_threads_change_no_bit(direction: Any) -> None:
    """One session, shapes on both sides of a task's four images and 64 captions."""
    spec = small_spec(direction)
    model = alignment_operator_graph(spec).model({})
    sessions = [open_session(model, threads) for threads in (1, 3)]
    for images, captions, words in [(1, 1, 1), (4, 5, 12), (9, 200, 6), (5, 64, 33), (2, 131, 2)]:
        feed = random_feed(images, images, captions, words)
        expected = kernel_scores(feed, spec)
        for session in sessions:
            scores = session.run(None, feed)[0]
            assert scores.shape == (images, captions)
            assert scores.tobytes() == expected.tobytes()


@pytest.mark.parametrize(("images", "captions"), [(0, 3), (3, 0), (0, 0)])
def test_no_images_or_no_captions(images: int, captions: int) -> None:
    session = open_session(alignment_operator_graph(small_spec()).model({}))
    scores = session.run(None, random_feed(2, images, captions, 5))[0]
    assert scores.shape == (images, captions)


def test_padding_is_never_read_into_a_score() -> None:
    spec = small_spec()
    session = open_session(alignment_operator_graph(spec).model({}))
    feed = random_feed(3, 2, 4, 9)
    clean = session.run(None, feed)[0]
    for level in (1, 2, 3):
        feed[f"text_level{level}"][feed["attention_mask"] == 0] = np.nan
    assert session.run(None, feed)[0].tobytes() == clean.tobytes()


@pytest.mark.parametrize(
    "row", [[0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 1, 0], [1, 2, 0, 0], [-1, 0, 0, 0]]
)
def test_a_mask_that_is_no_prefix(row: list[int]) -> None:
    session = open_session(alignment_operator_graph(small_spec()).model({}))
    feed = random_feed(4, 2, 3, 4)
    feed["attention_mask"][1] = row
    with pytest.raises(INVALID, match="attention_mask of caption 1: expected 1 on every real word"):
        session.run(None, feed)
    feed["attention_mask"][1] = [1, 1, 0, 0]
    assert np.isfinite(session.run(None, feed)[0]).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "image_level1",
            (2, 64),
            r"image_level1: expected \[images, regions, dim\], got \[2, 64",
        ),
        ("image_level1", (2, 0, 24), r"image_level1: expected \[images, regions, dim\]"),
        ("image_level2", (3, 16, 24), r"image_level2: expected the shape \[2, 16, 24\]"),
        ("image_level3", (2, 4, 23), r"image_level3: expected the shape \[2, 4, 24\]"),
        ("text_level1", (3, 5, 23), r"text_level1: expected the shape \[3, 5, 24\]"),
        ("text_level1", (3, 0, 24), r"text_level1: expected \[captions, words, dim\]"),
        ("text_level2", (4, 5, 24), r"text_level2: expected the shape \[3, 5, 24\]"),
        ("text_level3", (3, 6, 24), r"text_level3: expected the shape \[3, 5, 24\].*\[3, 6, 24\]"),
    ],
)
def test_bad_shapes(name: str, shape: tuple[int, ...], message: str) -> None:
    session = open_session(loose_model(alignment_operator_graph(small_spec()).model({})))
    feed = random_feed(5, 2, 3, 5)
    session.run(None, feed)
    with pytest.raises(INVALID, match=message):
        session.run(None, feed | {name: np.ones(shape, np.float32)})


@pytest.mark.parametrize("shape", [(3,), (3, 6), (4, 5), (3, 5, 1)])
def test_a_mask_of_another_shape(shape: tuple[int, ...]) -> None:
    session = open_session(loose_model(alignment_operator_graph(small_spec()).model({})))
    feed = random_feed(5, 2, 3, 5) | {"attention_mask": np.ones(shape, np.int64)}
    with pytest.raises(INVALID, match=r"attention_mask: expected the shape \[3, 5\]"):
        session.run(None, feed)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_features_that_give_no_finite_score(value: float) -> None:
    session = open_session(alignment_operator_graph(small_spec()).model({}))
    feed = random_feed(6, 2, 3, 5)
    feed["image_level2"][1] = value
    feed["text_level2"] *= np.float32(1e10)  # products of 1e30 leave float32's range
    with pytest.raises(INVALID, match="score of image 1 with caption 0 isn't finite"):
        session.run(None, feed)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        (helper.make_attribute("direction", "both"), "i2t or t2i, got both"),
        (helper.make_attribute("direction", 3), "direction: expected i2t or t2i, it is missing"),
        (helper.make_attribute("softmax_lambda", 0.0), "above 0, at most 1000, got 0"),
        (helper.make_attribute("softmax_lambda", 1001.0), "above 0, at most 1000, got 1001"),
        (helper.make_attribute("softmax_lambda", float("nan")), "at most 1000, got nan"),
        (helper.make_attribute("softmax_lambda", 9), "softmax_lambda: .*, it is missing"),
    ],
)
def test_bad_attributes(attribute: onnx.AttributeProto, message: str) -> None:
    model = alignment_operator_graph(small_spec()).model({})
    (node,) = (node for node in model.graph.node if node.domain == "hat_export")
    kept = [entry for entry in node.attribute if entry.name != attribute.name]
    del node.attribute[:]
    node.attribute.extend([*kept, attribute])
    with pytest.raises(REFUSED, match=message):
        open_session(model)


def test_features_of_another_type_are_refused() -> None:
    model = alignment_operator_graph(small_spec()).model({})
    for value in model.graph.input:
        if value.name == "text_level2":
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(REFUSED, match=r"tensor\(double\)"):
        open_session(model)


def test_the_model_is_valid_and_needs_the_library() -> None:
    model = alignment_operator_graph(small_spec()).model({})
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}["hat_export"] == 1
    with pytest.raises(REFUSED, match="HierarchicalAlignment"):
        open_session(model, library=False)


def test_sessions_come_and_go() -> None:
    """The library is unloaded with its last session and works when it is loaded again."""
    spec = small_spec()
    model = alignment_operator_graph(spec).model({})
    feed = random_feed(7, 3, 4, 5)
    expected = kernel_scores(feed, spec).tobytes()
    for _ in range(3):
        first, second = open_session(model), open_session(model)
        assert first.run(None, feed)[0].tobytes() == expected
        del first
        assert second.run(None, feed)[0].tobytes() == expected
        del second


def test_a_missing_library_is_an_error(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(alignment_cpu.LIBRARY_VARIABLE, str(tmp_path / "libhat_alignment.so"))
    with pytest.raises(BackendUnavailableError, match=r"libhat_operators\.so is missing"):
        operators.library_path()
