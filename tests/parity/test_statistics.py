"""Intervals of recall differences: coverage, clusters, exact zeros; budgets and verdicts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hat_export.errors import InputError
from hat_export.parity.budget import Verdict, judge, overall, parse_budget
from hat_export.parity.comparison import Parity, compare_scores
from hat_export.parity.statistics import (
    RECALLS,
    Delta,
    deltas,
    images_needed,
    imagined,
    mcnemar,
    resampled,
    typical,
)
from hat_export.score.metrics import RECALL_AT, Ranks, Retrieval

CAPTIONS = 5


def parity_of(
    i2t: tuple[np.ndarray, np.ndarray],
    t2i: tuple[np.ndarray, np.ndarray],
    owners: np.ndarray,
) -> Parity:
    """A comparison with these ranks and no scores behind them; all changes are real."""
    random = np.random.default_rng(0)
    sides = [Retrieval(Ranks(a, a), Ranks(b, b)) for a, b in zip(i2t, t2i, strict=True)]
    scores = random.random((2, 2, 2)).astype(np.float32)
    changed = compare_scores(scores[0], scores[1] - np.eye(2, dtype=np.float32), [0, 1]).changed
    return Parity(sides[0], sides[1], changed, 1.0, owners)


def simulated(
    random: np.random.Generator, images: int, loss: float, gain: float, trials: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Changes of images whose captions go with them, and the true mean changes.

    An image loses or gains with the given chances; its own query is then hit in 60 % of the cases,
    each of its captions in half of them.
    """
    chance = random.random((trials, images))
    kind = np.where(chance < loss, -1, np.where(chance < loss + gain, 1, 0))
    i2t = kind * (random.random(kind.shape) < 0.6)
    t2i = kind * random.binomial(CAPTIONS, 0.5, kind.shape)
    truth = (gain - loss) * np.array([0.6, 0.5, 1.1])
    return i2t, t2i, truth


@pytest.mark.parametrize(
    ("images", "loss", "gain"), [(1000, 0.008, 0.012), (1000, 0.03, 0.02), (300, 0.15, 0.1)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    images: int, loss: float, gain: float
) -> None:
    random = np.random.default_rng(7)
    trials, resamples = 1500, 1000
    sizes = np.stack([np.ones(images, np.int64), np.full(images, CAPTIONS)])
    held = np.zeros(3)
    i2t, t2i, truth = simulated(random, images, loss, gain, trials)
    for own, captions in zip(i2t, t2i, strict=True):
        means = resampled(np.stack([own, captions]), sizes, random, resamples)
        means = np.concatenate([means, means.sum(1, keepdims=True)], 1)
        shares = (own, captions / CAPTIONS, own + captions / CAPTIONS)
        for metric, (share, single) in enumerate(zip(shares, (1, 1 / CAPTIONS, 1), strict=True)):
            size = typical(share.astype(np.float64), single) / images
            drawn = means[:, metric] + imagined(size, random, resamples)
            low, high = np.quantile(drawn, (0.025, 0.975))
            held[metric] += low <= truth[metric] <= high
    # 1,500 trials have a standard error of 0.6 points.
    assert (held / trials >= 0.93).all(), held / trials
    assert (held / trials <= 0.98).all(), held / trials
    assert held.sum() / (3 * trials) <= 0.97


def test_few_changes_are_not_believed_too_firmly() -> None:
    """Where three images of a thousand change, intervals still hold the truth; plain ones don't."""
    random = np.random.default_rng(7)
    images, trials = 1000, 400
    sizes = np.full((1, images), CAPTIONS)
    _, t2i, truth = simulated(random, images, 0.002, 0.001, trials)
    plain = widened = 0
    for captions in t2i:
        means = resampled(captions[None], sizes, random, 1000)[:, 0]
        size = typical(captions / CAPTIONS, 1 / CAPTIONS) / images
        for drawn, kind in ((means, 0), (means + imagined(size, random, 1000), 1)):
            low, high = np.quantile(drawn, (0.025, 0.975))
            held = bool(low <= truth[1] <= high)
            plain += held and not kind
            widened += held and kind
    assert plain / trials < 0.88
    assert widened / trials >= 0.95


def test_drawing_groups_is_drawing_images() -> None:
    """The mean and the spread of the samples are those of drawing images one by one."""
    random = np.random.default_rng(3)
    sizes = random.integers(3, 8, (1, 200))
    changes = random.integers(-1, 2, (1, 200)) * random.integers(0, 3, (1, 200))
    grouped = resampled(changes, sizes, random, 20_000)[:, 0]
    chosen = random.integers(0, 200, (20_000, 200))
    single = changes[0][chosen].sum(1) / sizes[0][chosen].sum(1)
    assert grouped.mean() == pytest.approx(single.mean(), abs=4 * single.std() / math.sqrt(10_000))
    assert grouped.std() == pytest.approx(single.std(), rel=0.03)


def test_captions_of_one_image_count_as_one() -> None:
    """The same number of lost captions is less certain where they belong to few images."""
    images = 400
    owners = np.repeat(np.arange(images), CAPTIONS)
    still = np.zeros(images, np.int64)
    before = np.zeros(images * CAPTIONS, np.int64)
    together, apart = before.copy(), before.copy()
    together[: 20 * CAPTIONS] = 50  # all five captions of 20 images
    apart[: 100 * CAPTIONS : CAPTIONS] = 50  # one caption of 100 images
    wide = deltas(parity_of((still, still), (before, together), owners))["t2i_r1"]
    narrow = deltas(parity_of((still, still), (before, apart), owners))["t2i_r1"]
    assert wide.difference == narrow.difference == pytest.approx(-5)
    assert wide.lost == narrow.lost == 100
    assert wide.high - wide.low > 1.8 * (narrow.high - narrow.low)
    for found in (wide, narrow):  # 95 % of a nearly normal mean
        assert found.spread is not None
        assert (found.high - found.low) / 2 == pytest.approx(1.96 * found.spread / 20, rel=0.1)


def test_nothing_changed_is_exactly_zero() -> None:
    scores = np.random.default_rng(0).random((30, 150)).astype(np.float32)
    owners = np.repeat(np.arange(30), CAPTIONS).tolist()
    for delta in deltas(compare_scores(scores, scores.copy(), owners)).values():
        assert (delta.difference, delta.low, delta.high) == (0, 0, 0)
        assert delta.p_value in (None, 1.0)


def test_a_recall_without_a_change_isnt_zero_where_others_change() -> None:
    images = 100
    still, moved = np.zeros(images, np.int64), np.zeros(images, np.int64)
    moved[:7] = 3  # leaves R@1, stays within R@5
    owners = np.arange(images)
    found = deltas(parity_of((still, moved), (still, still), owners))
    assert found["i2t_r5"].difference == 0
    assert found["i2t_r5"].low < 0 < found["i2t_r5"].high
    assert found["i2t_r1"].high < 0
    assert found["i2t_r1"].lost == 7


def test_medians_and_means_of_ranks() -> None:
    images = 101
    before = np.arange(images)
    found = deltas(parity_of((before, before + 4), (before, before), np.arange(images)))
    assert found["i2t_median_rank"].difference == 4
    assert found["i2t_median_rank"].low == found["i2t_median_rank"].high == 4
    assert found["i2t_mean_rank"].difference == pytest.approx(4)
    assert found["t2i_mean_rank"].difference == 0


def test_rsum_is_the_sum() -> None:
    random = np.random.default_rng(5)
    ranks = [random.integers(0, 30, size) for size in (60, 60, 300, 300)]
    owners = np.repeat(np.arange(60), CAPTIONS)
    found = deltas(parity_of((ranks[0], ranks[1]), (ranks[2], ranks[3]), owners))
    summed = sum(found[name].difference for name in RECALLS)
    assert found["rsum"].difference == pytest.approx(summed)
    assert found["rsum"].low < summed < found["rsum"].high
    assert set(RECALLS) == {f"{side}_r{at}" for side in ("i2t", "t2i") for at in RECALL_AT}


@pytest.mark.parametrize(
    ("lost", "gained", "expected"),
    # Binomial tails by hand: 2 / 2^5, 2 (1 + 10) / 2^10, and a split that says nothing.
    [(5, 0, 0.0625), (1, 9, 22 / 1024), (4, 4, 1.0), (0, 0, 1.0), (1, 0, 1.0)],
)
def test_mcnemar(lost: int, gained: int, expected: float) -> None:
    assert mcnemar(lost, gained) == pytest.approx(expected)
    assert mcnemar(gained, lost) == mcnemar(lost, gained)


def test_mcnemar_of_thousands() -> None:
    assert mcnemar(5000, 4000) < 1e-20
    assert mcnemar(5000, 5000) == 1.0


def delta(difference: float, low: float, spread: float = 3.0) -> Delta:
    return Delta(50.0, 50.0 + difference, low, -low, spread)


def judged(difference: float, low: float, limit: float) -> tuple[Verdict, int | None]:
    found = {name: delta(0.0, 0.0) for name in (*RECALLS, "rsum")}
    found["rsum"] = delta(difference, low)
    (judgement,) = judge(found, {"rsum": limit}, 1000)
    assert overall((judgement,), strict=False) is judgement.verdict
    return judgement.verdict, judgement.needed


def test_a_budget_is_judged_on_the_interval() -> None:
    assert judged(-0.1, -0.4, 0.5) == (Verdict.passed, None)
    assert judged(-0.6, -0.9, 0.5) == (Verdict.failed, None)
    verdict, needed = judged(-0.1, -0.8, 0.5)
    assert verdict is Verdict.undecided
    assert needed == 1001  # (1.96 * 3 / 0.4)^2 is fewer than there were
    assert judged(-0.4, -0.8, 0.5) == (Verdict.undecided, math.ceil((1.959964 * 3 / 0.1) ** 2))
    assert judged(0.3, 0.1, 0.0) == (Verdict.passed, None)
    assert judged(0.0, 0.0, 0.0) == (Verdict.passed, None)


def test_no_number_of_images_tells_what_lies_on_the_limit() -> None:
    assert judged(-0.5, -0.8, 0.5) == (Verdict.undecided, None)
    assert images_needed(3.0, 0.0) is None


def test_strict_takes_the_worst_end() -> None:
    found = {name: delta(0.0, 0.0) for name in (*RECALLS, "rsum")}
    found["i2t_r1"] = delta(-0.1, -0.8)
    judgements = judge(found, {"r1": 0.5}, 1000)
    assert overall(judgements, strict=False) is Verdict.undecided
    assert overall(judgements, strict=True) is Verdict.failed
    assert "images to tell" in judgements[0].sentence()


def test_one_direction_may_have_a_budget_of_its_own() -> None:
    found = {name: delta(-0.3, -0.3) for name in (*RECALLS, "rsum")}
    verdicts = {
        item.metric: item.verdict for item in judge(found, parse_budget("r1=0.2,t2i_r1=1"), 1000)
    }
    assert verdicts == {"i2t_r1": Verdict.failed, "t2i_r1": Verdict.passed}


@pytest.mark.parametrize("text", ["r2=1", "r1", "r1=x", "r1=-1", "", "r1=nan", "r1=0.2;rsum=1"])
def test_wrong_budgets_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="budget"):
        parse_budget(text)


def test_a_budget() -> None:
    assert parse_budget("r1=0.2, rsum=1") == {"r1": 0.2, "rsum": 1.0}
