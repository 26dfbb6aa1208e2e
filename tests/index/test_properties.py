"""What has to hold of scores and recall whatever the data: properties, by hypothesis."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hat_export.score.alignment import score_with_kernel
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.score.metrics import rank
from index_samples import SMALL, Sample, sample

FEW = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 1 << 16)
COUNTS = st.integers(1, 5)


def features(data: Sample) -> ImageFeatures:
    """Images at full width."""
    folds = data.projections.levels
    pairs = zip(data.images.levels, folds, strict=True)
    return ImageFeatures(tuple(x if fold is None else fold.apply(x) for x, fold in pairs))


def scores(images: ImageFeatures, texts: TextFeatures, threads: int = 1) -> np.ndarray:
    return score_with_kernel(images, texts, SMALL, threads)


def chosen(texts: TextFeatures, order: np.ndarray) -> TextFeatures:
    return TextFeatures(tuple(level[order] for level in texts.levels), texts.lengths[order])


@FEW
@given(SEEDS, COUNTS, COUNTS)
def test_permuted_items_have_permuted_scores(seed: int, images: int, captions: int) -> None:
    data = sample(SMALL, images, captions, seed)
    random = np.random.default_rng(seed)
    rows, columns = random.permutation(images), random.permutation(captions)
    regions = features(data)
    moved = ImageFeatures(tuple(level[rows] for level in regions.levels))
    expected = scores(regions, data.texts)[rows][:, columns]
    np.testing.assert_array_equal(scores(moved, chosen(data.texts, columns)), expected)


@FEW
@given(SEEDS, COUNTS, COUNTS, st.integers(1, 9))
def test_padding_has_no_meaning(seed: int, images: int, captions: int, more: int) -> None:
    data = sample(SMALL, images, captions, seed)
    random = np.random.default_rng(seed)
    padded = []
    for level in data.texts.levels:
        wide = random.standard_normal((captions, level.shape[1] + more, level.shape[2])) * 1e3
        wide = wide.astype(np.float32)
        for row, length in enumerate(data.texts.lengths):
            wide[row, :length] = level[row, :length]
            wide[row, length:][random.random(wide[row, length:].shape) < 0.1] = np.nan
        padded.append(wide)
    texts = TextFeatures(tuple(padded), data.texts.lengths)
    regions = features(data)
    np.testing.assert_array_equal(scores(regions, texts), scores(regions, data.texts))


@FEW
@given(SEEDS, COUNTS, COUNTS, st.integers(0, 5), st.integers(0, 5), st.integers(1, 3))
def test_split_batches_have_the_same_scores(
    seed: int, images: int, captions: int, row: int, column: int, threads: int
) -> None:
    data = sample(SMALL, images, captions, seed)
    regions, whole = features(data), scores(features(data), data.texts)
    row, column = row % images, column % captions
    one = ImageFeatures(tuple(level[row : row + 1] for level in regions.levels))
    some = chosen(data.texts, np.arange(column, captions))
    np.testing.assert_array_equal(scores(one, data.texts, threads)[0], whole[row])
    np.testing.assert_array_equal(scores(regions, some, threads), whole[:, column:])


@st.composite
def ranked(draw: st.DrawFn) -> tuple[np.ndarray, list[int]]:
    """Scores with many ties, and whose captions they are."""
    owners = sorted(draw(st.lists(st.integers(0, 5), min_size=1, max_size=12)))
    owners = [sorted(set(owners)).index(owner) for owner in owners]
    random = np.random.default_rng(draw(SEEDS))
    values = random.integers(0, draw(st.integers(1, 9)), (max(owners) + 1, len(owners)))
    return values.astype(np.float32), owners


@FEW
@given(ranked())
def test_recall_grows_with_k_and_with_luck(data: tuple[np.ndarray, list[int]]) -> None:
    found = rank(*data)
    for ranks in (found.i2t, found.t2i):
        recalls = [ranks.recall(at) for at in range(1, 14)]
        assert recalls == sorted(recalls)
        assert recalls[-1] == 100  # as many as there can be
        assert (ranks.best <= ranks.worst).all()


@FEW
@given(ranked(), st.floats(0.5, 4), st.integers(-3, 3))
def test_recall_depends_on_the_order_only(
    data: tuple[np.ndarray, list[int]], factor: float, offset: int
) -> None:
    values, owners = data
    moved = np.float32(factor) * values + np.float32(offset)
    assert rank(moved, owners).to_json() == rank(values, owners).to_json()


@FEW
@given(ranked(), SEEDS)
def test_recall_is_that_of_any_order_ties_included(
    data: tuple[np.ndarray, list[int]], seed: int
) -> None:
    values, owners = data
    random = np.random.default_rng(seed)
    rows, columns = random.permutation(len(values)), random.permutation(len(owners))
    place = {int(old): new for new, old in enumerate(rows)}
    moved = [place[owners[column]] for column in columns]
    found, expected = rank(values[rows][:, columns], moved), rank(values, owners)
    np.testing.assert_array_equal(found.i2t.worst, expected.i2t.worst[rows])
    np.testing.assert_array_equal(found.t2i.worst, expected.t2i.worst[columns])
    assert found.to_json() == expected.to_json()


@FEW
@given(st.integers(1, 6), st.integers(1, 5))
def test_equal_scores_are_the_worst_rank(images: int, captions: int) -> None:
    """A model that tells nothing apart must not look as if it did."""
    owners = [n for n in range(images) for _ in range(captions)]
    found = rank(np.zeros((images, len(owners)), np.float32), owners)
    assert (found.t2i.worst == images - 1).all()
    assert (found.i2t.worst == (images - 1) * captions).all()
    assert not found.i2t.best.any()
    assert not found.t2i.best.any()
