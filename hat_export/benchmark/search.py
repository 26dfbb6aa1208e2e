"""Two-stage search on a dataset: how many candidates a recall needs, and what they save.

The number of candidates is chosen on one split and judged on another.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.progress import SILENT, Progress
from hat_export.data.dataset import CaptionDataset
from hat_export.errors import InputError
from hat_export.index.images import ImageIndex
from hat_export.index.rescore import Calibration, SearchReport, calibrate, measure_search
from hat_export.report.report import Report, Table
from hat_export.runtime.evaluate import encode_captions
from hat_export.runtime.session import Session
from hat_export.score.features import TextFeatures
from hat_export.score.metrics import RECALL_AT

#: Numbers of candidates shown besides the chosen one.
STEPS = (10, 20, 50, 100, 200, 500)

#: The calibrated number is the smallest that served one sample; another needs some more.
SAFETY = 2


@dataclass(frozen=True)
class IndexedSplit:
    """A split whose images are indexed and whose captions are encoded.

    Attributes:
        dataset: The split.
        index: Its images.
        texts: Word features of its captions, in dataset order.
        exact: Exact scores, float32 [images, captions].
    """

    dataset: CaptionDataset
    index: ImageIndex
    texts: TextFeatures
    exact: np.ndarray


def build_index(
    session: Session,
    dataset: CaptionDataset,
    path: Path,
    storage: str,
    batch: int = 50,
    progress: Progress = SILENT,
) -> ImageIndex:
    """Encode the images of a dataset into a new index.

    Args:
        session: Any backend, direction i2t.
        dataset: Whose images.
        path: File of the index; must not exist.
        storage: A name of :data:`hat_export.index.storage.STORAGES`.
        batch: Images at a time.
        progress: Told after each batch.
    """
    name = session.spec.name
    index = ImageIndex.create(path, session.spec, name, session.projections, storage)
    names = [entry.name for entry in dataset.entries]
    pictures = dataset.images()
    for start in range(0, len(names), batch):
        some = names[start : start + batch]
        index.add(some, session.reduce_images([next(pictures) for _ in some]))
        progress.count("images indexed", start + len(some), len(names))
    return index


def encode_texts(
    session: Session, dataset: CaptionDataset, batch: int = 50, progress: Progress = SILENT
) -> TextFeatures:
    """Word features of every caption, in dataset order."""
    blocks = list(encode_captions(session, dataset.captions, batch, progress))
    together = TextFeatures.concatenate([features for _, features in blocks])
    back = np.argsort(np.concatenate([positions for positions, _ in blocks]))
    return together[back]


def index_split(
    session: Session,
    dataset: CaptionDataset,
    path: Path,
    storage: str,
    progress: Progress = SILENT,
) -> IndexedSplit:
    """Index a split and score it exactly.

    Raises:
        InputError: if the model scores in direction t2i, which an index doesn't serve.
    """
    index = build_index(session, dataset, path, storage, progress=progress)
    texts = encode_texts(session, dataset, progress=progress)
    exact = index.score(texts, session.threads, progress)
    return IndexedSplit(dataset, index, texts, exact)


def tune_search(
    session: Session,
    calibration: IndexedSplit,
    test: IndexedSplit,
    candidates: str,
    recall_loss: float,
    queries: int,
) -> tuple[Calibration, Calibration, SearchReport]:
    """Choose the number of candidates on one split, measure recall and latency on another.

    Args:
        session: Whose threads are used.
        calibration: Split that chooses.
        test: Split that is measured.
        candidates: A name of :data:`hat_export.index.search.CANDIDATES`.
        recall_loss: Tolerated loss of every recall@K, in points.
        queries: Captions whose latency is measured; recall is taken over all of them.

    Returns:
        The calibrations on both splits, and the latencies on the test split.
    """
    if not recall_loss >= 0:
        raise InputError(f"a recall loss of {recall_loss} points; expected at least 0")
    found = []
    for split in (calibration, test):
        coarse = split.index.coarse_scores(split.texts, candidates, session.threads)
        found.append(calibrate(split.exact, coarse, split.dataset.owners, (recall_loss,)))
    chosen = choose_candidates(found[0], recall_loss, len(test.index))
    step = max(1, len(test.texts) // queries)
    some = np.arange(0, len(test.texts), step)
    owners = [test.dataset.owners[position] for position in some.tolist()]
    settings = sorted({chosen, *(n for n in STEPS if n < len(test.index))})
    report = measure_search(
        test.index, test.texts[some], owners, candidates, settings, session.threads
    )
    return found[0], found[1], report


def choose_candidates(calibration: Calibration, recall_loss: float, images: int) -> int:
    """Candidates that a loss needs in an index of another size.

    The place of a right answer among the candidates grows with the number of images, so the number
    is carried over as a share of them, times :data:`SAFETY`.

    Args:
        calibration: On the calibration split.
        recall_loss: Points, one of those calibrated.
        images: Images of the index that is searched.
    """
    needed = max(RECALL_AT[-1], calibration.rescore[float(recall_loss)])
    calibrated = len(calibration.recalls[RECALL_AT[0]])
    return min(images, math.ceil(SAFETY * needed * max(1.0, images / calibrated)))


def search_report(
    results: Mapping[str, tuple[Calibration, Calibration, SearchReport]],
    recall_loss: float,
    names: tuple[str, str],
    environment: Mapping[str, Any],
) -> Report:
    """The report of :func:`tune_search` for some kinds of candidates.

    Args:
        results: By kind of candidates.
        recall_loss: What the number was chosen for.
        names: Calibration split and test split.
        environment: Machine and versions.
    """
    tables, summary, data = [], [], {}
    for candidates, (chosen_on, judged_on, measured) in results.items():
        chosen = choose_candidates(chosen_on, recall_loss, measured.images)
        exact_ms = measured.points[-1].median_ms
        rows = []
        for point in measured.points:
            losses = [judged_on.exact[at] - judged_on.recall(at, point.rescore) for at in RECALL_AT]
            last = point.rescore == measured.images
            name = "exact" if last else f"{point.rescore}"
            rows.append(
                (
                    name + (" (chosen)" if point.rescore == chosen else ""),
                    *(f"{judged_on.recall(at, point.rescore):.2f}" for at in RECALL_AT),
                    f"{max(losses):.2f}",
                    f"{point.median_ms:.2f}",
                    f"{point.p90_ms:.2f}",
                    f"{exact_ms / point.median_ms:.1f}x",
                )
            )
            if point.rescore == chosen:
                summary.append(
                    f"{candidates}: {chosen} candidates, chosen on {names[0]} for a loss of at "
                    f"most {recall_loss:g} points, lose at most {max(losses):.2f} on {names[1]} "
                    f"and are {exact_ms / point.median_ms:.1f} times faster than exact search."
                )
        columns = ("candidates", *(f"R@{at}" for at in RECALL_AT))
        columns = (*columns, "largest loss", "p50 ms", "p90 ms", "speed")
        note = (
            f"Caption to image in {measured.images} images ({measured.precision}). Recall over "
            f"{judged_on.queries} captions; latency of one caption over {measured.captions} of "
            f"them, {measured.threads} threads, settings in turn; encoding the caption not counted."
        )
        tables.append(Table(f"Candidates: {candidates}", columns, tuple(rows), note))
        data[candidates] = {
            "chosen": chosen,
            "calibration": chosen_on.to_json(),
            "test": judged_on.to_json(),
            "latency": measured.to_json(),
        }
    content = {"recall_loss": recall_loss, **data, "environment": dict(environment)}
    title = f"Two-stage search on {names[1]}"
    return Report("search", title, None, tuple(summary), tuple(tables), content)
