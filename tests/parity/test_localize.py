"""Localization in a small graph of known faults, and on the graphs' fusions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import hat_export
from hat_export.bundle.bundle import Bundle
from hat_export.errors import InputError
from hat_export.parity.graphs import Probe, localize_between
from hat_export.parity.localize import Difference, Localization, bound_of, localize_difference
from hat_export.runtime.self_test import noise_captions, noise_pixels

Feeds = dict[str, np.ndarray]

LAYER = "vit_model.layers.1.blocks.1"


@pytest.fixture(scope="module", params=["onnx", "packed"])
def bundle(request, exported: Callable[..., Path]) -> Bundle:
    options = {} if request.param == "onnx" else {"attention": request.param}
    return Bundle.read(exported("tiny", **options))


def feeds_of(bundle: Bundle, graph: str) -> Feeds:
    spec = bundle.manifest.spec
    if graph == "image":
        return {"pixel_values": noise_pixels(spec, 2, seed=1)}
    ids, mask = noise_captions(spec, 1, 7, seed=2)
    return {"input_ids": ids, "attention_mask": mask}


def model_of(bundle: Bundle, graph: str) -> onnx.ModelProto:
    return onnx.load(bundle.graph_path(graph))


def located(bundle: Bundle, graph: str, candidate: onnx.ModelProto, bound=1e-4) -> Localization:
    packed = bundle.manifest.attention_form == "packed"
    reference = model_of(bundle, graph)
    return localize_difference(graph, reference, candidate, feeds_of(bundle, graph), bound, packed)


def damage(model: onnx.ModelProto, part: str, change) -> list[str]:
    """Change every weight matrix whose name holds ``part``; returns their names."""
    changed = []
    for tensor in model.graph.initializer:
        if part in tensor.name and len(tensor.dims) > 1:
            array = change(numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
            changed.append(tensor.name)
    assert changed, part
    return changed


@pytest.mark.parametrize("graph", ["image", "text"])
def test_equal_graphs(bundle: Bundle, graph: str) -> None:
    found = located(bundle, graph, model_of(bundle, graph))
    assert found.first is None
    assert found.disturbed == ()
    assert max(item.own.relative for item in found.layers) <= 1e-6
    assert "No layer" in found.sentence()


def test_the_layer_and_the_node_are_named(bundle: Bundle) -> None:
    candidate = model_of(bundle, "image")
    changed = damage(candidate, f"{LAYER}.mlp.fc2", lambda weight: 1.5 * weight)
    found = located(bundle, "image", candidate)
    assert found.first is not None
    assert found.first.layer == LAYER
    assert found.first_node is not None
    assert set(changed) & set(found.first_node.weights)
    # Whatever comes before is untouched, whatever comes after is wrong only by what it is given.
    names = [item.layer for item in found.layers]
    before = found.layers[: names.index(LAYER)]
    assert max(item.total.relative for item in before) <= 1e-6
    after = [item for item in found.layers if item.layer.startswith("vit_model.layers.2")]
    assert min(item.total.relative for item in after) > 1e-3
    assert max(item.own.relative for item in after) <= 1e-6


def test_nan_is_over_every_bound(bundle: Bundle) -> None:
    candidate = model_of(bundle, "image")
    damage(candidate, f"{LAYER}.mlp.fc1", lambda weight: np.full_like(weight, np.nan))
    found = located(bundle, "image", candidate)
    assert found.first is not None
    assert found.first.layer == LAYER
    json.dumps(found.to_json(), allow_nan=False)


def test_other_layouts_are_refused(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="text graphs of different layout"):
        located(bundle, "text", model_of(bundle, "image"))


def test_differences() -> None:
    one = np.array([3.0, 4.0], np.float32)
    assert Difference.of(one, one) == Difference(1.0, 0.0, 0.0)
    assert Difference.of(one, 2 * one) == Difference(1.0, 4.0, 1.0)
    assert Difference.of(0 * one, 0 * one) == Difference(1.0, 0.0, 0.0)
    assert Difference.of(0 * one, one).relative == 1.0
    assert Difference.of(one, one[::-1]).cosine == pytest.approx(24 / 25)


def test_low_precision_against_the_checkpoint(
    tiny_checkpoint: Path, exported: Callable[..., Path]
) -> None:
    """Its own rounding isn't a fault; a layer that is wrong besides is named."""
    target = exported("tiny", precision="fp16")
    bundle = Bundle.read(target)
    probe = Probe({graph: feeds_of(bundle, graph) for graph in ("image", "text")}, 1)
    found = localize_between(
        tiny_checkpoint, lambda: hat_export.load(tiny_checkpoint, threads=1), target, probe
    )
    assert [item.first for item in found] == [None, None]
    worst = [max(layer.own.relative for layer in item.layers) for item in found]
    assert all(1e-5 < error < bound_of("fp16") for error in worst), worst
