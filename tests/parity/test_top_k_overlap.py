"""The share of the reference's best answers that a candidate keeps."""

from __future__ import annotations

import numpy as np
import pytest

from hat_export.errors import InputError
from hat_export.parity.top_k_overlap import AT, top_kept

IMAGES, CAPTIONS = 40, 80
OWNERS = np.arange(CAPTIONS) // 2


def scores(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((IMAGES, CAPTIONS)).astype(np.float32)


def by_sorting(before: np.ndarray, after: np.ndarray) -> float:
    kept = [
        len(set(np.argsort(-old)[:AT]) & set(np.argsort(-new)[:AT])) / AT
        for old, new in zip(before, after, strict=True)
    ]
    return 100 * float(np.mean(kept))


def test_equal_rankings_are_kept_whatever_the_scale() -> None:
    found = top_kept(scores(), 3 * scores() - 1, OWNERS)
    assert found is not None
    assert (found.both, found.low, found.high) == (100, 100, 100)


def test_it_is_what_sorting_says() -> None:
    before, after = scores(), scores() + 0.1 * scores(1)
    found = top_kept(before, after, OWNERS)
    assert found is not None
    assert found.i2t == pytest.approx(by_sorting(before, after))
    assert found.t2i == pytest.approx(by_sorting(before.T, after.T))
    assert found.both == pytest.approx((found.i2t + found.t2i) / 2)
    assert found.low < found.both < found.high < 100


def test_unrelated_rankings_keep_what_chance_keeps() -> None:
    found = top_kept(scores(), scores(1), OWNERS)
    assert found is not None
    assert found.i2t == pytest.approx(100 * AT / CAPTIONS, abs=4)
    assert found.t2i == pytest.approx(100 * AT / IMAGES, abs=4)


def test_an_answer_that_ties_with_the_tenth_is_kept() -> None:
    before = np.tile(np.arange(CAPTIONS, 0, -1, dtype=np.float32), (IMAGES, 1))
    after = before.copy()
    after[:, AT] = after[:, AT - 1]  # the eleventh draws level with the tenth
    tied = top_kept(before, after, OWNERS)
    after[:, AT] += 0.5  # and overtakes it
    lost = top_kept(before, after, OWNERS)
    assert tied is not None
    assert lost is not None
    assert tied.i2t == 100
    assert lost.i2t == pytest.approx(90)


def test_ten_of_ten_say_nothing() -> None:
    assert top_kept(scores()[:AT], scores()[:AT], OWNERS) is None


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match="one shape"):
        top_kept(scores(), scores()[:, :-1], OWNERS)
