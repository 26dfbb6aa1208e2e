"""Scores from an index, two-stage search, and the choice of the number of candidates."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hat_export.index.image_records
import hat_export.score.tiles
from fake_clock import no_waits
from hat_export.base.timer import Timer
from hat_export.benchmark.search import choose_candidates
from hat_export.errors import InputError
from hat_export.index.captions import CaptionIndex
from hat_export.index.images import ImageIndex
from hat_export.index.rescore import Calibration, calibrate, measure_search
from hat_export.index.search import (
    CANDIDATES,
    level3_scores,
    pooled_scores,
    top_positions,
)
from hat_export.kernels import alignment_cpu
from hat_export.score.captions import prepare
from hat_export.score.features import ReducedImages
from hat_export.score.metrics import RECALL_AT, rank
from index_samples import MEDIUM, Sample, exact_scores, sample
from progress_calls import CountCalls

IMAGES, CAPTIONS = 20, 15

#: Largest error of a score by storage precision. float32: what the kernel's own tests grant a
#: score. The others round a feature by at most 2^-11 and 2^-8 of itself, and by a 254th of its
#: region's largest (about 2.5 standard deviations). An error e of a dot product, relative to its
#: typical size, moves a level's cosine by about e through the numerator and by up to
#: lambda e / sqrt(regions) through the attention: with 4 to 64 regions and lambda 9 that is below
#: 5.5 e a level and 12 e in all. Rounding errors of a hundred dimensions mostly cancel, a tenth
#: remains: 1.2 e is granted.
TOLERANCES = {
    "float32": 2e-6,
    "float16": 1.2 * 2.0**-11,
    "bfloat16": 1.2 * 2.0**-8,
    "int8": 1.2 * 2.5 / 254,
}


@pytest.fixture(scope="module")
def data() -> Sample:
    return sample(MEDIUM, IMAGES, CAPTIONS)


@pytest.fixture(scope="module")
def exact(data: Sample) -> np.ndarray:
    return exact_scores(data)


@pytest.fixture(scope="module")
def index(data: Sample, tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    return make(tmp_path_factory.mktemp("index") / "images.hatidx", data, "float32")


def make(path: Path, data: Sample, precision: str) -> ImageIndex:
    index = ImageIndex.create(path, data.spec, "model", data.projections, precision)
    half = len(data.images) // 2
    for first, last in ((0, half), (half, len(data.images))):
        ids = data.image_ids[first:last]
        index.add(ids, data.some_images(first, last))
    return index


# --------------------------------------------------------------------------------- exact scores


@pytest.mark.parametrize("precision", TOLERANCES)
def test_scores_from_an_index_equal_the_definition(
    data: Sample, exact: np.ndarray, tmp_path: Path, precision: str
) -> None:
    index = make(tmp_path / "i.hatidx", data, precision)
    scores = index.score(data.texts)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, exact, rtol=0, atol=TOLERANCES[precision])
    if precision != "float32":
        # The precision was really used: a float32 index is far nearer.
        assert np.abs(scores - exact).max() > 5 * TOLERANCES["float32"]


def test_scores_from_an_index_equal_the_kernel_at_full_width(
    data: Sample, index: ImageIndex
) -> None:
    full = np.zeros((IMAGES, CAPTIONS), np.float32)
    folds = data.projections.levels
    for hidden, words, fold in zip(data.images.levels, data.texts.levels, folds, strict=True):
        regions = hidden if fold is None else fold.apply(hidden)
        full += alignment_cpu.level_scores(regions, words, data.texts.lengths, 9.0)
    scores = index.score(data.texts)
    np.testing.assert_allclose(scores, full, rtol=0, atol=TOLERANCES["float32"])


def test_captions_from_a_file_score_the_same(
    data: Sample, index: ImageIndex, tmp_path: Path
) -> None:
    captions = CaptionIndex.create(tmp_path / "c.hatidx", MEDIUM, "model", data.projections)
    captions.add(data.caption_ids, data.texts)
    np.testing.assert_array_equal(
        index.score(captions),
        index.score(data.texts),
    )


def test_blocks_and_threads_change_no_score(
    data: Sample, index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = index.score(data.texts)
    seen: list[tuple[str, int, int]] = []
    # Three images of the largest level at a time.
    monkeypatch.setattr(hat_export.score.tiles, "DECODED_BYTES", 3 * 4 * 64 * 32)
    pieces = index.score(data.texts, 2, CountCalls(lambda *progress: seen.append(progress)))
    np.testing.assert_array_equal(pieces, whole)
    assert [done for _, done, _ in seen] == [CAPTIONS * n for n in (3, 6, 9, 12, 15, 18, 20)]
    assert {(what, total) for what, _, total in seen} == {("pairs scored", IMAGES * CAPTIONS)}
    # Words are folded by one matrix product a block, whose rounding depends on its size.
    monkeypatch.setattr(hat_export.score.tiles, "CAPTIONS_PER_BLOCK", 4)
    small = index.score(data.texts)
    np.testing.assert_allclose(small, whole, rtol=0, atol=TOLERANCES["float32"])


def test_only_a_bounded_block_is_decoded(
    data: Sample, index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 5 * 4 * 64 * 32
    largest = 0
    level = ImageIndex.level

    def watched(self: ImageIndex, number: int, positions: np.ndarray) -> object:
        nonlocal largest
        values, norms = level(self, number, positions)
        largest = max(largest, values.nbytes)
        return values, norms

    monkeypatch.setattr(hat_export.score.tiles, "DECODED_BYTES", limit)
    monkeypatch.setattr(ImageIndex, "level", watched)
    index.score(data.texts)
    assert largest == limit


def test_an_empty_index_or_no_caption_gives_an_empty_result(
    data: Sample, index: ImageIndex, tmp_path: Path
) -> None:
    empty = ImageIndex.create(tmp_path / "e.hatidx", MEDIUM, "model", data.projections)
    assert empty.score(data.texts).shape == (0, CAPTIONS)
    assert index.score(data.texts[:0]).shape == (IMAGES, 0)
    for name in CANDIDATES:
        hits = empty.search(data.texts, 3, name, 5)
        assert [hit.ids for hit in hits] == [()] * CAPTIONS
        assert index.search(data.texts[:0], 3, name, 5) == []


def test_captions_of_another_model_are_refused(
    data: Sample, index: ImageIndex, tmp_path: Path
) -> None:
    other = sample(MEDIUM, 2, 2, seed=5)
    with pytest.raises(InputError, match="other projections"):
        index.use(other.projections)
    captions = CaptionIndex.create(tmp_path / "c.hatidx", MEDIUM, "model", None)
    captions.add(other.caption_ids, other.texts)
    with pytest.raises(InputError, match="other projections"):
        index.score(captions)
    narrow = type(data.texts)(tuple(x[..., :5] for x in data.texts.levels), data.texts.lengths)
    with pytest.raises(InputError, match="5 wide"):
        index.search(narrow, 1)


def test_an_index_opened_alone_says_what_it_lacks(
    data: Sample, index: ImageIndex, tmp_path: Path
) -> None:
    captions = CaptionIndex.create(tmp_path / "c.hatidx", MEDIUM, "model", data.projections)
    for made in (index, captions):
        with (
            type(made).open(made.file.path) as alone,
            pytest.raises(InputError, match="open_search"),
        ):
            alone.search(data.texts if isinstance(alone, ImageIndex) else data.images, 1)
    with ImageIndex.open(index.file.path, data.projections) as opened:
        np.testing.assert_array_equal(opened.score(data.texts), index.score(data.texts))
    full = CaptionIndex.create(tmp_path / "f.hatidx", MEDIUM, "model", None)
    with pytest.raises(InputError, match="of full width"):
        full.search(data.images, 1)


# ------------------------------------------------------------------------------- coarse scores


def test_level_3_candidates_are_the_exact_level_3_scores(data: Sample, index: ImageIndex) -> None:
    expected = alignment_cpu.level_scores(
        data.images.levels[2], data.texts.levels[2], data.texts.lengths, 9.0
    )
    captions = prepare(data.texts, data.projections)
    np.testing.assert_array_equal(level3_scores(index, captions), expected)


def test_pooled_scores_are_weighted_cosines(data: Sample, index: ImageIndex) -> None:
    captions = prepare(data.texts, data.projections)
    expected = np.zeros((IMAGES, CAPTIONS))
    for level, weight in enumerate((0.5, 1.0, 2.0)):
        columns = slice(level * MEDIUM.dim, (level + 1) * MEDIUM.dim)
        images = index.pooled(np.arange(IMAGES))[:, columns].astype(np.float64)
        expected += weight * images @ captions.pooled[:, columns].T
    scores = pooled_scores(index, captions, weights=(0.5, 1.0, 2.0))
    # 288 float32 products, whose sizes sum to 3.5 at most: 288 x 2^-24 x 3.5.
    np.testing.assert_allclose(scores, expected, rtol=0, atol=6e-5)


def test_pooled_vectors_in_memory_follow_the_file(
    data: Sample, index: ImageIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions = prepare(data.texts, data.projections)
    growing = ImageIndex.create(tmp_path / "g.hatidx", data.spec, "m", data.projections, "float32")
    for part in (slice(0, 7), slice(7, IMAGES)):
        some = ReducedImages(tuple(level[part] for level in data.images.levels))
        growing.add(data.image_ids[part], some)
        scores = pooled_scores(growing, captions)
        assert scores.shape == (len(growing), CAPTIONS)
    kept = growing.all_pooled()
    np.testing.assert_array_equal(kept, growing.pooled(np.arange(IMAGES)))
    monkeypatch.setattr(hat_export.index.image_records, "POOLED_BYTES", 0)
    assert growing.all_pooled() is None
    # The same vectors, block by block: only the order of summation may differ.
    np.testing.assert_allclose(pooled_scores(growing, captions), scores, atol=1e-5)
    growing.close()


def test_candidates_are_carried_over_as_a_share() -> None:
    curve = {at: np.full(100, 50.0) for at in RECALL_AT}
    found = Calibration(500, dict.fromkeys(RECALL_AT, 50.0), curve, {0.1: 15, 1.0: 3})
    assert choose_candidates(found, 0.1, 100) == 30
    assert choose_candidates(found, 0.1, 1000) == 300
    assert choose_candidates(found, 1.0, 100) == 20  # recall@10 shows ten
    assert choose_candidates(found, 0.1, 20) == 20


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_coarse_scores_tell_much_of_the_exact_ones(
    data: Sample, exact: np.ndarray, index: ImageIndex, candidates: str
) -> None:
    coarse = index.coarse_scores(data.texts, candidates)
    # Captions of the sample lean towards their image: a coarse score that mixed up levels, images
    # or captions would be unrelated to the exact one.
    assert np.corrcoef(coarse.ravel(), exact.ravel())[0, 1] > 0.7


# -------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_search_among_all_equals_exact(
    data: Sample, tmp_path: Path, candidates: str, precision: str
) -> None:
    index = make(tmp_path / "i.hatidx", data, precision)
    scores = index.score(data.texts)
    for rescore in (None, IMAGES, IMAGES + 5):
        found = index.search(data.texts, 7, candidates, rescore)
        assert len(found) == CAPTIONS
        for hits, column in zip(found, scores.T, strict=True):
            best = np.argsort(-column, kind="stable")[:7]
            np.testing.assert_array_equal(hits.positions, best)
            np.testing.assert_array_equal(hits.scores, column[best])
            assert hits.ids == tuple(data.image_ids[position] for position in best)


@pytest.mark.parametrize("rescore", [4, 9])
@pytest.mark.parametrize("candidates", CANDIDATES)
def test_search_ranks_the_coarse_candidates_by_exact_score(
    data: Sample, index: ImageIndex, candidates: str, rescore: int
) -> None:
    scores = index.score(data.texts)
    coarse = index.coarse_scores(data.texts, candidates)
    found = index.search(data.texts, 4, candidates, rescore)
    for caption, hits in enumerate(found):
        chosen = np.sort(np.argsort(-coarse[:, caption], kind="stable")[:rescore])
        best = chosen[np.argsort(-scores[chosen, caption], kind="stable")[:4]]
        np.testing.assert_array_equal(hits.positions, best)
        np.testing.assert_array_equal(hits.scores, scores[best, caption])


def test_more_hits_than_images(data: Sample, index: ImageIndex) -> None:
    hits = index.search(data.texts[:1], 100)[0]
    assert sorted(hits.positions.tolist()) == list(range(IMAGES))


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_equal_images_come_in_order_of_position(
    data: Sample, tmp_path: Path, candidates: str
) -> None:
    index = ImageIndex.create(tmp_path / "i.hatidx", MEDIUM, "model", data.projections)
    for copy in range(3):
        ids = [f"{copy}-{number}" for number in range(2)]
        index.add(ids, data.some_images(0, 2))
    for hits in index.search(data.texts, 6, candidates):
        pairs = hits.positions.reshape(2, 3)
        assert {tuple(pair) for pair in pairs.tolist()} == {(0, 2, 4), (1, 3, 5)}


@pytest.mark.parametrize(("top_k", "rescore"), [(0, 5), (6, 5), (-1, None)])
def test_bad_numbers_are_refused(
    data: Sample, index: ImageIndex, top_k: int, rescore: int | None
) -> None:
    with pytest.raises(InputError, match="1 <= top_k <= rescore"):
        index.search(data.texts, top_k, "level3", rescore)


def test_unknown_candidates_are_refused(data: Sample, index: ImageIndex) -> None:
    with pytest.raises(InputError, match="expected one of level3, pooled"):
        index.search(data.texts, 1, "level2")


@settings(max_examples=100, deadline=None)
@given(values=st.lists(st.integers(-3, 3), max_size=30), count=st.integers(0, 35))
def test_top_positions_are_a_stable_sort(values: list[int], count: int) -> None:
    scores = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda n: (-values[n], n))[:count]
    assert top_positions(scores, count).tolist() == expected


# --------------------------------------------------------------------------------- calibration


def plain_recall(
    exact: np.ndarray, coarse: np.ndarray, owners: list[int], at: int, rescore: int
) -> float:
    """Recall of two-stage search in percent, counted one caption after the other."""
    found = 0
    for caption, right in enumerate(owners):
        order = sorted(range(len(exact)), key=lambda n: (-coarse[n, caption], n))[:rescore]
        rivals = [n for n in order if n != right and exact[n, caption] >= exact[right, caption]]
        found += right in order and len(rivals) < at
    return 100.0 * found / len(owners)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 25),
    steps=st.sampled_from([2, 4, 1000]),
)
def test_calibration_equals_counting(seed: int, images: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    captions = 8
    # Few steps give many ties.
    exact = random.integers(0, steps, (images, captions)).astype(np.float32)
    coarse = (exact + random.integers(0, 1 + steps // 2, exact.shape)).astype(np.float32)
    owners = random.integers(0, images, captions).tolist()
    losses = (0.0, 15.0, 100.0)
    calibration = calibrate(exact, coarse, owners, losses)
    curves = {
        at: [plain_recall(exact, coarse, owners, at, n) for n in range(1, images + 1)]
        for at in RECALL_AT
    }
    for at, curve in curves.items():
        np.testing.assert_allclose(calibration.recalls[at], curve)
    for loss in losses:
        enough = [
            all(value >= curve[-1] - loss - 1e-6 for curve in curves.values() for value in
                curve[n - 1 :])
            for n in range(1, images + 1)
        ]  # fmt: skip
        assert calibration.rescore[loss] == enough.index(True) + 1
    assert calibration.rescore[100.0] == 1


def test_calibration_with_all_candidates_is_the_official_recall() -> None:
    random = np.random.default_rng(3)
    exact = random.integers(0, 30, (12, 36)).astype(np.float32)
    owners = [n // 3 for n in range(36)]
    calibration = calibrate(exact, -exact, owners)
    official = rank(exact, owners).t2i
    for at in RECALL_AT:
        assert calibration.exact[at] == pytest.approx(official.recall(at))
        assert calibration.recall(at, 1000) == calibration.exact[at]


def test_calibration_of_a_perfect_coarse_score_needs_as_many_as_recall_looks_at() -> None:
    exact = np.random.default_rng(4).standard_normal((40, 400)).astype(np.float32)
    owners = [n % 40 for n in range(400)]
    calibration = calibrate(exact, exact, owners, (0.0,))
    assert calibration.rescore == {0.0: 10}


def test_calibration_is_plain_json() -> None:
    exact = np.random.default_rng(5).standard_normal((120, 10)).astype(np.float32)
    values = calibrate(exact, exact, list(range(10)), (0.0, 2.5)).to_json()
    assert json.loads(json.dumps(values)) == values
    steps = [point["rescore"] for point in values["curve"]]
    assert {1, 2, 5, 10, 20, 50, 100, 120} <= set(steps)
    assert steps == sorted(set(steps))
    assert [row["loss"] for row in values["rescore"]] == [0.0, 2.5]


def test_bad_calibration_input_is_refused() -> None:
    scores = np.zeros((3, 2), np.float32)

    def run(
        exact: np.ndarray = scores,
        coarse: np.ndarray = scores,
        owners: tuple[int, ...] = (0, 1),
        loss: float = 0.0,
    ) -> Calibration:
        return calibrate(exact, coarse, owners, (loss,))

    run()
    with pytest.raises(InputError, match="equal shapes"):
        run(coarse=scores[:2])
    with pytest.raises(InputError, match="equal shapes"):
        run(owners=(0,))
    with pytest.raises(InputError, match="0 to 2"):
        run(owners=(0, 3))
    with pytest.raises(InputError, match="NaN"):
        run(exact=scores + np.float32(np.nan))
    with pytest.raises(InputError, match="at least 0"):
        run(loss=-1.0)


@pytest.mark.parametrize("candidates", CANDIDATES)
def test_measured_recall_equals_the_calibrated_one(
    data: Sample, index: ImageIndex, candidates: str
) -> None:
    owners = [number % IMAGES for number in range(CAPTIONS)]
    ticks = itertools.count()
    report = measure_search(
        index, data.texts, owners, candidates, [10, 14, 500],
        timer=Timer(lambda: next(ticks) / 1000, count_waits=no_waits),
    )  # fmt: skip
    scores = index.score(data.texts)
    coarse = index.coarse_scores(data.texts, candidates)
    calibration = calibrate(scores, coarse, owners)
    assert [point.rescore for point in report.points] == [10, 14, IMAGES]
    for point in report.points:
        for at in RECALL_AT:
            assert point.recalls[at] == pytest.approx(calibration.recall(at, point.rescore))
        assert point.median_ms == pytest.approx(1.0)
    values = report.to_json()
    assert json.loads(json.dumps(values)) == values
    with pytest.raises(InputError, match="owners"):
        measure_search(index, data.texts, owners[:1], candidates, [10])
