"""Profiles: nodes mapped to layers, times added up, and the whole command on a real profile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hat_export.benchmark.profile.report import Profile, layer_path, profile_report, totals
from hat_export.benchmark.profile.trace import RUNTIME, graph_layers, layer_of, read_trace
from hat_export.errors import InputError

LAYERS = {"vit_model.layers.0.blocks.0", "vit_model.layers.0.blocks.0.mlp", "vit_model.layers.1"}


@pytest.mark.parametrize(
    ("node", "layer"),
    [
        ("vit_model.layers.0.blocks.0/MatMul_1", "vit_model.layers.0.blocks.0"),
        ("vit_model.layers.0.blocks.0.mlp/Gelu", "vit_model.layers.0.blocks.0.mlp"),
        ("vit_model.layers.1/MatMul/MatMulAddFusion", "vit_model.layers.1"),
        ("fused vit_model.layers.1/Add", "vit_model.layers.1"),
        ("Transpose_token_9", RUNTIME),
        ("vit_model.layers.10/MatMul", RUNTIME),
    ],
)
def test_nodes_belong_to_layers(node: str, layer: str) -> None:
    assert layer_of(node, LAYERS) == layer


def event(name: str, start: int, duration: int, operator: str) -> dict:
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": duration,
        "args": {"op_name": operator},
    }


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    entries = [{"cat": "Session", "name": "model_loading", "ts": 0, "dur": 5}]
    for run, slow in enumerate((1000, 10, 30, 20)):
        start = 10_000 * (run + 1)
        entries += [
            event("copy", start + 1, 1, "MemcpyToHost"),
            event("vit_model.layers.1/MatMul", start + 10, slow, "MatMul"),
            event("BiasGelu_token_1", start + 2000, 5, "BiasGelu"),
            event("vit_model.layers.0.blocks.0/MatMul", start + 3000, 10, "MatMul"),
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 5000},
        ]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(entries))
    return Profile("image", "1", 0.004, read_trace(path, LAYERS), 1)


def test_times_are_medians_over_the_counted_runs(profile: Profile) -> None:
    assert profile.runs == pytest.approx((0.005,) * 3)
    operators = totals(profile, ("operator",))
    assert list(operators) == [("MatMul",), ("BiasGelu",), ("MemcpyToHost",)]
    assert operators["MatMul",].seconds == pytest.approx(30e-6)
    assert operators["MatMul",].calls == 2


def test_fused_nodes_follow_the_layer_before_them(profile: Profile) -> None:
    layers = totals(profile, ("layer",))
    assert layers["vit_model.layers.1",].seconds == pytest.approx(25e-6)
    assert layers[RUNTIME,].seconds == pytest.approx(1e-6)


def test_the_report_shows_operators_layers_and_a_flame(profile: Profile) -> None:
    report = profile_report("x", [profile], 2, {})
    assert [table.title for table in report.tables] == [
        "image 1: operators",
        "image 1: layers",
        "image 1: longest nodes",
    ]
    assert "layers.1" in report.figures[0].svg
    assert "4.00 ms a call without the profiler" in report.summary[0]


def test_paths_of_layers() -> None:
    assert layer_path("vit_model.layers.2.blocks.7") == ("vit_model", "layers.2", "blocks.7")
    assert layer_path(RUNTIME) == (RUNTIME,)


def test_what_is_no_profile_or_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('[{"name": "model_run"}]')
    with pytest.raises(InputError, match="not a profile"):
        read_trace(path, LAYERS)
    path.write_text("no graph")
    with pytest.raises(InputError, match="not a readable ONNX graph"):
        graph_layers(path)
