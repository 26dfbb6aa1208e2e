"""An export whose graphs differ from PyTorch anywhere is refused, and nothing of it is left."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hat_export.errors import ToleranceError
from hat_export.export.onnx_export import export_onnx
from hat_export.export.verify import IMAGE_BATCHES
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession
from hat_export.score.features import ImageFeatures


@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    """One value of one image in the largest batch alone, which the self-test doesn't have."""
    encode = OnnxRuntimeSession.encode_images

    def wrong(session: OnnxRuntimeSession, images: np.ndarray) -> ImageFeatures:
        features = encode(session, images)
        if len(features) == max(IMAGE_BATCHES):
            features.levels[1][-1, 0, 0] += error
        return features

    monkeypatch.setattr(OnnxRuntimeSession, "encode_images", wrong)
    with pytest.raises(ToleranceError, match=f"images at batch {max(IMAGE_BATCHES)}"):
        export_onnx(tiny_checkpoint, tmp_path / "out", threads=1)
    assert list(tmp_path.iterdir()) == []
