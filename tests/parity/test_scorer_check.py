"""What a session scores by itself beside the scores of the whole dataset."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hat_export.parity.scorer_check import OwnScores, check_scorers


@pytest.mark.parametrize(
    ("error", "passed"), [(0.0, True), (5e-6, True), (2e-5, False), (math.nan, False)]
)
def test_a_scorer_passes_within_its_tolerance(error: float, passed: bool) -> None:
    scores = np.random.default_rng(0).random((6, 30), np.float32)
    images, captions = np.array([0, 3, 5]), np.array([1, 10, 29])
    own = scores[np.ix_(images, captions)].copy()
    own[2, 1] += error
    checks = check_scorers(
        "candidate", OwnScores(images, captions, {"own score": own}), scores, 1e-5
    )
    assert [check.passed for check in checks] == [passed]
    assert checks[0].to_json()["passed"] is passed
    assert checks[0].pairs == 9
