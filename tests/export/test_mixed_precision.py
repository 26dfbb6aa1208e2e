"""Half precision: what it converts, what it keeps in float32, and that fused attention survives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from hat_export import open_bundle
from hat_export.bundle.bundle import Bundle
from hat_export.bundle.inspect import bundle_report
from hat_export.bundle.precision import PRECISIONS
from hat_export.errors import BackendUnavailableError, BundleError, FusionError
from hat_export.export import pipelines
from hat_export.export.attention import DecomposeAttention
from hat_export.export.graph import GraphBuilder
from hat_export.export.mixed_precision import MixedPrecision, find_kept
from hat_export.export.onnx_export import export_onnx
from hat_export.runtime.backends.emulation_backend import emulated
from hat_export.runtime.self_test import run_self_test

MLP_WIDTH = 8


def mlp(scale: float = 1.0) -> onnx.ModelProto:
    """x -> LayerNorm -> Linear (times ``scale``) -> Gelu -> Linear (divided by it) + x."""
    random = np.random.default_rng(0)
    weights = {
        "norm.weight": np.ones(MLP_WIDTH, np.float32),
        "norm.bias": np.zeros(MLP_WIDTH, np.float32),
        "up.weight": random.standard_normal((MLP_WIDTH, MLP_WIDTH)).astype(np.float32) * scale,
        "up.bias": np.zeros(MLP_WIDTH, np.float32),
        "down.weight": random.standard_normal((MLP_WIDTH, MLP_WIDTH)).astype(np.float32) / scale,
        "down.bias": np.zeros(MLP_WIDTH, np.float32),
    }
    graph = GraphBuilder("mlp")
    x = graph.input("x", np.float32, ["rows", MLP_WIDTH])
    hidden = graph.linear(graph.layer_norm(x, "norm", weights, 1e-5), "up", weights)
    hidden = graph.linear(graph.node("Gelu", [hidden]), "down", weights)
    graph.output(graph.node("Add", [x, hidden]), "y", np.float32, ["rows", MLP_WIDTH])
    return graph.model({})


def rows(seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((5, MLP_WIDTH)).astype(np.float32)}


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    result: np.ndarray = session.run(None, feed)[0]
    return result


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    return {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}


def test_weights_and_results_of_every_layer_are_half_precision() -> None:
    model = MixedPrecision("fp16", {})(mlp()).model
    assert {t.data_type for t in model.graph.initializer} == {TensorProto.FLOAT16}
    types = value_types(model)
    computed = [node for node in model.graph.node if node.op_type not in ("Cast", "Identity")]
    assert computed
    assert {types[node.output[0]] for node in computed} == {TensorProto.FLOAT16}


def test_inputs_and_outputs_stay_float32() -> None:
    graph = MixedPrecision("fp16", {})(mlp()).model.graph
    values = (*graph.input, *graph.output)
    assert {value.type.tensor_type.elem_type for value in values} == {TensorProto.FLOAT}


def test_values_within_range_are_not_kept() -> None:
    assert find_kept(mlp(), "fp16", [rows(1)], threads=1) == {}


def test_an_overflowing_layer_is_found_and_kept_and_the_result_is_right() -> None:
    model, feed = mlp(scale=2e4), rows(1)
    expected = run(model, feed)
    naive = run(emulated(MixedPrecision("fp16", {})(model).model), feed)
    assert not np.isfinite(naive).all()
    kept = find_kept(model, "fp16", [feed], threads=1)
    # The layer whose result is too large, what reads it, and the weights beyond the range.
    assert {"MatMul", "Add", "Gelu", "MatMul_1"} <= set(kept)
    assert "LayerNormalization" not in kept
    assert all("fp16 ends at 65504" in reason for reason in kept.values())
    # Two roundings of 2^-11 on values of a few units.
    np.testing.assert_allclose(
        run(emulated(MixedPrecision("fp16", kept)(model).model), feed), expected, atol=2e-2
    )


def test_headroom_keeps_what_only_nearly_overflows() -> None:
    largest = 65504 / 2
    model = mlp()
    feed = {"x": np.full((1, MLP_WIDTH), largest, np.float32)}
    assert find_kept(model, "fp16", [feed], threads=1)


def test_a_model_that_is_not_finite_in_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"LayerNormalization: .* not finite in float32"):
        find_kept(mlp(), "fp16", [{"x": np.full((1, MLP_WIDTH), np.nan, np.float32)}], threads=1)


@pytest.fixture(scope="module")
def half_bundle(exported: Callable[..., Path]) -> Bundle:
    return Bundle.read(exported("tiny", precision="fp16"))


def test_a_half_precision_bundle_is_half_the_size_and_passes_its_self_test(
    half_bundle: Bundle, tiny_bundle: Path
) -> None:
    single = Bundle.read(tiny_bundle)
    for name in ("image", "text"):
        ratio = half_bundle.graph_path(name).stat().st_size / single.graph_path(name).stat().st_size
        # Node names and index constants don't shrink; the tiny model has few weights beside them.
        assert ratio < 0.75
    assert half_bundle.manifest.precision == "fp16"
    with open_bundle(half_bundle.path, threads=1) as session:
        differences = run_self_test(half_bundle, session)
    assert 1e-5 < max(differences.values()) <= PRECISIONS["fp16"].feature_tolerance


def test_attention_stays_fused_in_half_precision(half_bundle: Bundle) -> None:
    for name in ("image", "text"):
        info = half_bundle.manifest.graphs[name]
        assert info.attention_fused == info.attention_expected > 0
        types = value_types(onnx.load(half_bundle.graph_path(name)))
        for node in onnx.load(half_bundle.graph_path(name)).graph.node:
            if node.op_type == "Attention":
                assert types[node.output[0]] == TensorProto.FLOAT16


def test_kept_layers_survive_the_manifest(bundle_copy: Path) -> None:
    path = bundle_copy / "manifest.json"
    content = json.loads(path.read_text())
    content["graphs"]["image"]["kept_fp32"] = {"a/MatMul": "too large"}
    path.write_text(json.dumps(content))
    bundle = Bundle.read(bundle_copy)
    assert bundle.manifest.graphs["image"].kept_fp32 == {"a/MatMul": "too large"}
    report = bundle_report(bundle, verified=True)
    assert [t.rows for t in report.tables if t.title == "Kept in fp32"] == [
        (("image", "a/MatMul", "too large"),)
    ]


def test_an_unknown_precision_is_refused(bundle_copy: Path) -> None:
    manifest = bundle_copy / "manifest.json"
    text = manifest.read_text().replace('"precision": "fp32"', '"precision": "fp12"')
    manifest.write_text(text)
    with pytest.raises(BundleError, match=r"precision 'fp12'; this version knows fp32, fp16, bf16"):
        Bundle.read(bundle_copy)


def test_a_missing_fusion_is_an_error_that_names_the_layer(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Should a layer ever be written another way, the export must not go through unnoticed."""
    monkeypatch.setitem(pipelines.FORMS, "onnx", (DecomposeAttention(),))
    message = (
        r"image graph: 0 of \d+ attention layers are one operator \(Attention\); taken apart: vit"
    )
    with pytest.raises(FusionError, match=message):
        export_onnx(tiny_checkpoint, tmp_path / "out", require_fused=True, threads=1)
    assert not (tmp_path / "out").exists()


def test_a_form_without_a_fused_operator_cannot_be_required_fused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(FusionError, match="'decomposed' has no fused operator"):
        export_onnx(tiny_checkpoint, tmp_path / "out", attention="decomposed", require_fused=True)


def test_bf16_is_refused_where_there_are_no_kernels_and_emulated_where_asked(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bundle = export_onnx(tiny_checkpoint, tmp_path / "out", precision="bf16", threads=1)
    with pytest.raises(BackendUnavailableError, match=r"no bf16 kernels; .* --backend emulation"):
        open_bundle(bundle.path, threads=1)
    with open_bundle(bundle.path, backend="emulation", threads=1) as session:
        differences = run_self_test(bundle, session)
    # Coarser than fp16 by three bits: the rounding really happens.
    assert 1e-3 < max(differences.values()) <= PRECISIONS["bf16"].feature_tolerance


def test_calibration_is_refused_where_nothing_can_overflow(tiny_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "hat_export.cli.export", "onnx", str(tiny_checkpoint), "x"]
    result = subprocess.run(
        [*command, "--calibration", "demo/emojicap"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "no use with --precision fp32" in result.stderr
