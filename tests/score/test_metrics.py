"""Recall and ranks: the official protocol's numbers, ties, and input that has no ranks."""

from __future__ import annotations

import numpy as np
import pytest

from hat_export.errors import InputError
from hat_export.score.metrics import RECALL_AT, Ranks, fold_mean, rank
from hat_reference_inputs import RECALL_CASES, recall_matrix, tied_matrix
from hat_reference_weights import checksum

Arrays = dict[str, np.ndarray]

#: Order of the nine recorded numbers of one direction.
RECORDED_AT = (1, 5, 10, 20, 50, 70, 100)


def five_each(images: int) -> list[int]:
    return [index for index in range(images) for _ in range(5)]


def compare(ranks: Ranks, recorded: np.ndarray) -> None:
    for at, value in zip(RECORDED_AT, recorded, strict=False):
        assert ranks.recall(at) == pytest.approx(value, abs=1e-9)
    assert ranks.median == pytest.approx(recorded[7], abs=1e-9)
    assert ranks.mean == pytest.approx(recorded[8], abs=1e-9)


@pytest.mark.parametrize("name", RECALL_CASES)
def test_official_recall(golden_recall: Arrays, name: str) -> None:
    scores = recall_matrix(name)
    assert checksum(scores) == golden_recall[f"{name}/checksum"]
    result = rank(scores, five_each(len(scores)))
    for side in ("i2t", "t2i"):
        ranks = getattr(result, side)
        np.testing.assert_array_equal(ranks.worst, golden_recall[f"{name}/{side}_ranks"])
        np.testing.assert_array_equal(ranks.best, ranks.worst)  # there are no ties
        compare(ranks, golden_recall[f"{name}/{side}"])
    recorded = [golden_recall[f"{name}/{side}"][:3].sum() for side in ("i2t", "t2i")]
    assert result.rsum == pytest.approx(sum(recorded), abs=1e-9)


@pytest.mark.parametrize("name", RECALL_CASES)
def test_rank_zero_is_the_recorded_top_answer(golden_recall: Arrays, name: str) -> None:
    scores = recall_matrix(name)
    owners = np.asarray(five_each(len(scores)))
    result = rank(scores, owners.tolist())
    first_caption, first_image = (golden_recall[f"{name}/{side}_top1"] for side in ("i2t", "t2i"))
    np.testing.assert_array_equal(
        result.i2t.worst == 0, owners[first_caption] == np.arange(len(scores))
    )
    np.testing.assert_array_equal(result.t2i.worst == 0, first_image == owners)


def test_five_folds(golden_recall: Arrays) -> None:
    mean = fold_mean(recall_matrix("medium_150"), five_each(150), 5)
    recorded = golden_recall["medium_150/folds_mean"]
    for start, side in ((0, "i2t"), (9, "t2i")):
        for index, at in enumerate(RECALL_AT):
            assert mean[f"{side}_r{at}"] == pytest.approx(recorded[start + index], abs=1e-9)
        assert mean[f"{side}_median_rank"] == pytest.approx(recorded[start + 7], abs=1e-9)
        assert mean[f"{side}_mean_rank"] == pytest.approx(recorded[start + 8], abs=1e-9)
    six = [recorded[start + index] for start in (0, 9) for index in range(3)]
    assert mean["rsum"] == pytest.approx(sum(six), abs=1e-9)


def test_one_fold_is_the_whole() -> None:
    scores = recall_matrix("medium_100")
    whole = rank(scores, five_each(100))
    mean = fold_mean(scores, five_each(100), 1)
    assert mean["rsum"] == whole.rsum
    assert mean["i2t_median_rank"] == whole.i2t.median


def test_folds_of_unequal_size_are_refused() -> None:
    with pytest.raises(InputError, match="7 folds do not divide 100 images"):
        fold_mean(recall_matrix("medium_100"), five_each(100), 7)


def test_ties_of_captions(golden_recall: Arrays) -> None:
    ranks = rank(tied_matrix(), five_each(30)).t2i
    np.testing.assert_array_equal(ranks.best, golden_recall["tied/t2i_ranks_optimistic"])
    np.testing.assert_array_equal(ranks.worst, golden_recall["tied/t2i_ranks_pessimistic"])
    assert (ranks.best < ranks.worst).any()
    assert ranks.recall(1) < ranks.recall_if_ties_won(1)


def test_ties_of_images(golden_recall: Arrays) -> None:
    scores = tied_matrix()
    ranks = rank(scores, five_each(30)).i2t
    np.testing.assert_array_equal(ranks.best, golden_recall["tied/i2t_ranks_optimistic"])
    # The recorded pessimistic ranks count an image's other captions as competitors when they tie
    # with its best one. No order of the ties ranks an image behind its own captions, so we don't.
    own = np.stack([scores[image, 5 * image : 5 * image + 5] for image in range(30)])
    itself = (own == own.max(1, keepdims=True)).sum(1) - 1
    assert itself.any()
    recorded = golden_recall["tied/i2t_ranks_pessimistic"]
    np.testing.assert_array_equal(ranks.worst, recorded - itself)


@pytest.mark.parametrize("side", ["i2t", "t2i"])
@pytest.mark.parametrize("order", ["stable", "official_here"])
def test_every_sort_ranks_ties_within_our_bounds(
    golden_recall: Arrays, side: str, order: str
) -> None:
    ranks: Ranks = getattr(rank(tied_matrix(), five_each(30)), side)
    found = golden_recall[f"tied/{side}_ranks_{order}"]
    assert (ranks.best <= found).all()
    assert (found <= ranks.worst).all()


def test_equal_scores_everywhere_win_nothing() -> None:
    result = rank(np.zeros((20, 100)), five_each(20))
    assert result.rsum == 0
    assert result.i2t.recall_if_ties_won(1) == 100


def test_captions_need_not_be_in_order() -> None:
    scores = recall_matrix("medium_100")
    order = np.random.default_rng(0).permutation(500)
    plain = rank(scores, five_each(100))
    mixed = rank(scores[:, order], np.asarray(five_each(100))[order].tolist())
    np.testing.assert_array_equal(mixed.i2t.worst, plain.i2t.worst)
    np.testing.assert_array_equal(mixed.t2i.worst, plain.t2i.worst[order])


def test_any_number_of_captions_per_image() -> None:
    scores = np.array([[0.1, 0.9, 0.2], [0.8, 0.3, 0.7]])
    result = rank(scores, [0, 1, 1])
    assert result.i2t.worst.tolist() == [2, 1]
    assert result.t2i.worst.tolist() == [1, 1, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(bad: float) -> None:
    scores = recall_matrix("weak_100")
    scores[3, 4] = bad
    with pytest.raises(InputError, match="1 of 50000 scores are NaN or infinite"):
        rank(scores, five_each(100))


@pytest.mark.parametrize("owners", [[0, 0, 1], [0, 0, 0, 0], [0, 0, 1, 2], [-1, 0, 1, 1]])
def test_owners_that_do_not_fit_are_refused(owners: list[int]) -> None:
    with pytest.raises(InputError, match="expected an owner from 0 to 1"):
        rank(np.zeros((2, 4)), owners)


def test_json_has_every_number() -> None:
    content = rank(recall_matrix("weak_100"), five_each(100)).to_json()
    assert content["i2t"]["queries"] == 100
    assert content["t2i"]["queries"] == 500
    recalls = [content[side][f"r{at}"] for side in ("i2t", "t2i") for at in RECALL_AT]
    assert content["rsum"] == pytest.approx(sum(recalls))
