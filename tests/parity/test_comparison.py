"""Comparison of rankings: changed ranks, ties, scores that have no order."""

from __future__ import annotations

import numpy as np
import pytest

from hat_export.errors import InputError
from hat_export.parity.comparison import TIE_MARGIN, compare_scores
from hat_export.parity.statistics import deltas

OWNERS = [0, 0, 1, 1, 2, 2]


def scores(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    right = np.asarray(OWNERS)[None] == np.arange(3)[:, None]
    return (random.random((3, 6)) + right).astype(np.float32)


def test_equal_scores_change_nothing() -> None:
    parity = compare_scores(scores(), scores(), OWNERS)
    assert parity.changed == ()
    assert parity.score_difference == 0


def test_a_lost_answer_is_found_in_both_directions() -> None:
    reference, damaged = scores(), scores()
    damaged[0, :2] = -1  # image 0 no longer finds its captions, nor they it
    parity = compare_scores(reference, damaged, OWNERS)
    for metric in ("i2t_r1", "t2i_r1"):
        assert deltas(parity)[metric].difference == pytest.approx(-100 / 3)
    found = {(item.direction, item.query, item.before, item.after) for item in parity.changed}
    assert ("i2t", 0, 1, 5) in found
    assert ("t2i", 0, 1, 3) in found
    assert not any(item.tie for item in parity.changed)
    worst = parity.changed[0]
    assert (worst.before, worst.after) == (1, 5)
    assert worst.score_before == reference[0, :2].max()
    assert worst.score_after == -1


def test_a_swap_within_noise_is_a_tie() -> None:
    reference = scores()
    reference[1, 0] = reference[0, 0] - np.float32(TIE_MARGIN / 4)
    candidate = reference.copy()
    candidate[1, 0] = reference[0, 0] + np.float32(TIE_MARGIN / 4)
    (changed,) = [
        i for i in compare_scores(reference, candidate, OWNERS).changed if i.direction == "t2i"
    ]
    assert (changed.query, changed.before, changed.after) == (0, 1, 2)
    assert changed.tie
    assert changed.margin == pytest.approx(TIE_MARGIN / 4, rel=0.1)


def test_a_swap_beyond_noise_is_no_tie() -> None:
    reference = scores()
    reference[1, 0] = reference[0, 0] - np.float32(3 * TIE_MARGIN)
    candidate = reference.copy()
    candidate[1, 0] = reference[0, 0] + np.float32(TIE_MARGIN / 4)
    changed = compare_scores(reference, candidate, OWNERS).changed
    assert [item.tie for item in changed if item.direction == "t2i"] == [False]


def test_nan_and_shapes_are_refused() -> None:
    broken = scores()
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match="1 of 18 scores are NaN"):
        compare_scores(scores(), broken, OWNERS)
    with pytest.raises(InputError, match="expected one shape"):
        compare_scores(scores(), scores()[:, :4], OWNERS)
