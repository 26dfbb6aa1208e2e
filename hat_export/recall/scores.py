"""Scores of a whole dataset per level, streamed from files into files.

Captions are taken block by block, images block by block within; memory holds one block of each,
whatever the dataset's size. A finished block of captions is on the disk before the next begins, so
that an interrupted run goes on there. Images of one model may be scored with captions of another.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float32

from hat_export.errors import InputError, OutputError
from hat_export.evaluate import Progress, silent
from hat_export.files import write_text
from hat_export.index_projection import Projection
from hat_export.kernels import alignment_cpu
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.recall.embeddings import EncodedDataset
from hat_export.retrieval import row_blocks
from hat_export.spec import LEVEL_ORDER, LEVELS, Direction, ModelSpec

#: Memory of a block of captions' words and of a block of images' regions, in bytes.
CAPTION_BLOCK = 128 << 20
IMAGE_BLOCK = 64 << 20

STATE = "state.json"

Scores = Float32[np.ndarray, "images captions"]


@dataclass(frozen=True)
class Scorer:
    """What a model's spec says of its score.

    Attributes:
        direction: Which side asks.
        softmax_lambda: Inverse temperature of the attention softmax.
    """

    direction: Direction
    softmax_lambda: float

    @classmethod
    def of(cls, spec: ModelSpec) -> Scorer:
        """The scorer of a model."""
        return cls(spec.direction, spec.softmax_lambda)

    def __str__(self) -> str:
        """For reports."""
        return f"{self.direction}, lambda {self.softmax_lambda:g}"


@dataclass(frozen=True)
class LevelScores:
    """Scores of every image with every caption, in files.

    Attributes:
        levels: Level 1, 2 and 3 alone.
        total: Their sum, in the order of :data:`hat_export.spec.LEVEL_ORDER`.
    """

    levels: tuple[Scores, Scores, Scores]
    total: Scores


def score_levels(
    images: EncodedDataset,
    texts: EncodedDataset,
    scorer: Scorer,
    folder: Path,
    threads: int,
    progress: Progress = silent,
    what: str = "captions scored",
) -> LevelScores:
    """Score the images of one model with the captions of one, of the same or of another.

    Args:
        images: Whose images.
        texts: Whose captions.
        scorer: Whose constants.
        folder: The cache.
        threads: Threads of the kernel.
        progress: Called after each block, in captions.
        what: What to call this in the progress.

    Returns:
        Scores by the native kernel, memory-mapped.

    Raises:
        InputError: if the models' features don't fit together.
        OutputError: if the cache can't be written.
    """
    check_fit(images.spec, texts.spec)
    count, captions = len(images.image_rows), len(texts.text_rows)
    key = {
        "images": [images.keys.image, *images.image_ids],
        "texts": [texts.keys.text, *texts.text_ids],
        "scorer": asdict(scorer),
        "projections": images.projections.sha256,
        "path": alignment_cpu.resolve_path(),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    work = folder / f"scores-{name}"
    done = _done(work, captions)
    levels = [_matrix(work / f"level{n}.npy", count, captions, done) for n in range(1, LEVELS + 1)]
    total = _matrix(work / "total.npy", count, captions, done)
    longest = texts.spec.max_words * LEVELS * 4 * texts.spec.dim
    block = max(1, CAPTION_BLOCK // longest)
    if done < captions:
        progress(what, done, captions)
    for start in range(done, captions, block):
        stop = min(start + block, captions)
        _score_block(images, texts, scorer, threads, levels, start, stop, progress, what)
        for first, rows in row_blocks(levels[0][:, start:stop]):
            part = slice(first, first + len(rows))
            blocks = [level[part, start:stop] for level in levels]
            total[part, start:stop] = _summed(blocks)
        for matrix in (*levels, total):
            matrix.flush()
        write_text(work / STATE, json.dumps({"captions": stop}))
    first_level, second, third = levels
    return LevelScores((first_level, second, third), total)


def _score_block(
    images: EncodedDataset,
    texts: EncodedDataset,
    scorer: Scorer,
    threads: int,
    levels: Sequence[np.memmap],
    start: int,
    stop: int,
    progress: Progress,
    what: str,
) -> None:
    folds = images.projections.levels
    reduced = scorer.direction == "i2t"  # words of t2i attend to full-width regions
    prepared = [
        _folded(captions, fold) if reduced else captions
        for captions, fold in zip(texts.caption_levels(start, stop), folds, strict=True)
    ]
    count, total = len(images.image_rows), len(texts.text_rows)
    size = sum(4 * regions * images.spec.dim for regions in images.spec.level_regions)
    block = max(1, IMAGE_BLOCK // size)
    for first in range(0, count, block):
        last = min(first + block, count)
        for level in LEVEL_ORDER:
            regions, norms = images.image_level(level, first, last)
            fold = folds[level - 1]
            if fold is not None and not reduced:
                regions = fold.apply(regions)
            levels[level - 1][first:last, start:stop] = alignment_cpu.score(
                regions,
                norms,
                prepared[level - 1],
                scorer.softmax_lambda,
                scorer.direction,
                threads,
            )
        progress(what, start + (stop - start) * last // count, total)


def check_fit(images: ModelSpec, texts: ModelSpec) -> None:
    """Refuse features of different widths.

    Raises:
        InputError: naming the widths.
    """
    if images.dim != texts.dim:
        raise InputError(
            f"features of {images.name!r} are {images.dim} wide, those of {texts.name!r} "
            f"{texts.dim}; images of one can't be scored with captions of the other"
        )


def summed(levels: Sequence[Scores], path: Path) -> Scores:
    """The sum of three levels, whichever models they come from, in a file.

    Args:
        levels: Level 1, 2 and 3.
        path: Where; replaced if it exists.
    """
    total = np.lib.format.open_memmap(path, "w+", np.float32, levels[0].shape)
    for start, rows in row_blocks(levels[0]):
        part = slice(start, start + len(rows))
        total[part] = _summed([level[part] for level in levels])
    return total


def _summed(levels: Sequence[np.ndarray]) -> np.ndarray:
    total = np.zeros(levels[0].shape, np.float32)
    for level in LEVEL_ORDER:
        total += levels[level - 1]
    return total


def _folded(captions: LevelCaptions, fold: Projection | None) -> LevelCaptions:
    """Captions of full width with a projection folded in."""
    if fold is None:
        return captions
    return LevelCaptions(
        np.ascontiguousarray(captions.words @ fold.weight),
        captions.words @ fold.bias,
        captions.gram,
        captions.caption_start,
    )


def _done(work: Path, captions: int) -> int:
    """Captions that an earlier run has finished."""
    try:
        done = int(json.loads((work / STATE).read_text())["captions"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return 0
    return done if 0 <= done <= captions else 0


def _matrix(path: Path, images: int, captions: int, done: int) -> np.memmap:
    try:
        if done:
            found = np.lib.format.open_memmap(path, "r+")
            if (found.dtype, found.shape) != (np.float32, (images, captions)):
                raise ValueError(f"{found.dtype} {list(found.shape)}")
            return found
        path.parent.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(path, "w+", np.float32, (images, captions))
    except (OSError, ValueError, SyntaxError, TypeError, TokenError) as error:
        raise OutputError(
            f"{path}: can't be used ({error}); delete the folder, or name another with --cache"
        ) from None
