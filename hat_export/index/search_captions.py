"""From an image to captions: search in a caption index."""

from __future__ import annotations

import numpy as np

from hat_export.errors import InputError
from hat_export.index.captions import CaptionIndex, check_projections
from hat_export.index.search import Hits, top_positions
from hat_export.score.alignment import ScorableImages, score_reduced
from hat_export.score.features import ReducedImages
from hat_export.score.projection import Projections, pool
from hat_export.score.tiles import indexed_tiles


def search_captions(
    index: CaptionIndex,
    images: ReducedImages,
    projections: Projections,
    top_k: int,
    rescore: int | None = None,
    threads: int = 1,
) -> list[Hits]:
    """The best captions of every image.

    Args:
        index: The captions, folded with the projections.
        images: In reduced form.
        projections: Of the model that the index was made with.
        top_k: Captions wanted; fewer come back if the index has fewer.
        rescore: Captions that are scored exactly, those of the nearest pooled vectors, at least
            ``top_k``; all if None, which is the exact search.
        threads: Threads of the kernel.

    Returns:
        Hits per image, in order; equal scores in the order of the index.

    Raises:
        InputError: if projections, features or numbers don't fit.
    """
    check_projections(index.file, projections)
    images.check(index.spec)
    rescore = len(index) if rescore is None else rescore
    if top_k < 1 or (rescore < top_k and rescore < len(index)):
        raise InputError(
            f"top_k {top_k} with rescore {rescore}: expected 1 <= top_k <= rescore candidates"
        )
    coarse = None if rescore >= len(index) else index.pooled()
    hits = []
    for number in range(len(images)):
        image = ReducedImages(tuple(level[number : number + 1] for level in images.levels))
        chosen = np.arange(len(index))
        if coarse is not None:
            vector = _pooled(image, projections)
            chosen = np.sort(top_positions(coarse @ vector, rescore))
        scorable = ScorableImages.make(image, projections)
        scores = np.empty(len(chosen), np.float32)
        for tile in indexed_tiles(1, len(chosen), 0):
            captions = index.take(chosen[tile.columns].tolist())
            scores[tile.columns] = score_reduced(scorable, captions, index.spec, threads)[0]
        best = top_positions(scores, top_k)
        positions = chosen[best]
        names = tuple(index.ids[position] for position in positions.tolist())
        hits.append(Hits(names, positions, scores[best]))
    return hits


def _pooled(image: ReducedImages, projections: Projections) -> np.ndarray:
    folds = zip(image.levels, projections.levels, strict=True)
    return np.concatenate(
        [pool(hidden if fold is None else fold.apply(hidden))[0] for hidden, fold in folds]
    )
