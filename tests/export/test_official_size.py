"""The export at its official size: 199 million parameters, stand-in weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hat_export
from hat_export.export.onnx_export import export_onnx
from hat_export.export.verify import CAPTION_BATCHES, IMAGE_BATCHES
from hat_reference_weights import make_weights

pytestmark = pytest.mark.full


def test_export_equals_pytorch(official_tensors: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """The export itself compares batches of 1, 2, 3, 17 and lengths from 2 to 32, or fails."""
    shapes = {name: entry["shape"] for name, entry in official_tensors.items()}
    state = {name: torch.from_numpy(array) for name, array in make_weights(shapes).items()}
    torch.save({"state_dict": state}, tmp_path / "hat.ckpt")
    del state
    bundle = export_onnx(tmp_path / "hat.ckpt", tmp_path / "bundle", threads=2)
    found = bundle.manifest.verification
    assert {run["batch"] for run in found["images"]["runs"]} == set(IMAGE_BATCHES) >= {1, 17}
    assert {run["batch"] for run in found["texts"]["runs"]} == set(CAPTION_BATCHES) >= {1, 17}
    assert {run["words"] for run in found["texts"]["runs"]} >= {2, 32}
    assert found["images"]["largest_difference"] <= 2e-4
    assert found["texts"]["largest_difference"] <= 2e-4
    graphs = bundle.manifest.graphs
    assert (graphs["image"].attention_fused, graphs["image"].attention_expected) == (24, 24)
    assert (graphs["text"].attention_fused, graphs["text"].attention_expected) == (12, 12)
    hat_export.open_bundle(tmp_path / "bundle", threads=2).close()
