"""Comparison of rankings: deltas, budgets, changed ranks and ties."""

from __future__ import annotations

import numpy as np
import pytest

from hat_export.errors import InputError
from hat_export.parity import TIE_MARGIN, compare, parity_report, parse_budget

OWNERS = [0, 0, 1, 1, 2, 2]


def scores(seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    right = np.asarray(OWNERS)[None] == np.arange(3)[:, None]
    return (random.random((3, 6)) + right).astype(np.float32)


def test_equal_scores_change_nothing() -> None:
    parity = compare(scores(), scores(), OWNERS)
    assert parity.changed == ()
    assert parity.score_difference == 0
    assert set(parity.deltas().values()) == {0.0}
    assert parity.violations({"r1": 0.0, "rsum": 0.0}) == []


def test_a_lost_answer_is_found_in_both_directions() -> None:
    reference, damaged = scores(), scores()
    damaged[0, :2] = -1  # image 0 no longer finds its captions, nor they it
    parity = compare(reference, damaged, OWNERS)
    assert parity.deltas()["i2t_r1"] == pytest.approx(-100 / 3)
    assert parity.deltas()["t2i_r1"] == pytest.approx(-100 / 3)
    found = {(item.direction, item.query, item.before, item.after) for item in parity.changed}
    assert ("i2t", 0, 1, 5) in found
    assert ("t2i", 0, 1, 3) in found
    assert not any(item.tie for item in parity.changed)
    assert len(parity.violations({"r1": 1.0})) == 2
    assert parity.violations({"r1": 34.0}) == []
    assert parity.violations({"rsum": 1.0})[0].startswith("rsum dropped by")


def test_a_gain_is_no_violation() -> None:
    damaged = scores()
    damaged[0, :2] = -1
    assert compare(damaged, scores(), OWNERS).violations({"r1": 0.0, "rsum": 0.0}) == []


def test_a_swap_within_noise_is_a_tie() -> None:
    reference = scores()
    reference[1, 0] = reference[0, 0] - np.float32(TIE_MARGIN / 4)
    candidate = reference.copy()
    candidate[1, 0] = reference[0, 0] + np.float32(TIE_MARGIN / 4)
    (changed,) = [i for i in compare(reference, candidate, OWNERS).changed if i.direction == "t2i"]
    assert (changed.query, changed.before, changed.after) == (0, 1, 2)
    assert changed.tie
    assert changed.margin == pytest.approx(TIE_MARGIN / 4, rel=0.1)


def test_a_swap_beyond_noise_is_no_tie() -> None:
    reference = scores()
    reference[1, 0] = reference[0, 0] - np.float32(3 * TIE_MARGIN)
    candidate = reference.copy()
    candidate[1, 0] = reference[0, 0] + np.float32(TIE_MARGIN / 4)
    changed = compare(reference, candidate, OWNERS).changed
    assert [item.tie for item in changed if item.direction == "t2i"] == [False]


def test_nan_and_shapes_are_refused() -> None:
    broken = scores()
    broken[0, 0] = np.nan
    with pytest.raises(InputError, match="1 of 18 scores are NaN"):
        compare(scores(), broken, OWNERS)
    with pytest.raises(InputError, match="expected one shape"):
        compare(scores(), scores()[:, :4], OWNERS)


@pytest.mark.parametrize("text", ["r2=1", "r1", "r1=x", "r1=-1", "", "r1=nan", "r1=0.2;rsum=1"])
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_budget(text)


def test_a_budget() -> None:
    assert parse_budget("r1=0.2, rsum=1") == {"r1": 0.2, "rsum": 1.0}


def test_the_report_states_the_verdict() -> None:
    damaged = scores()
    damaged[0, :2] = -1
    parity = compare(scores(), damaged, OWNERS)
    report = parity_report(parity, ("a", "b"), "toy/test", {"r1": 0.5}, {})
    assert report.passed is False
    assert "FAILED" in report.summary[0]
    assert "i2t_r1 dropped by 33.33 points, allowed 0.5" in report.to_markdown()
    assert parity_report(parity, ("a", "b"), "toy/test", {"r1": 50.0}, {}).passed is True
