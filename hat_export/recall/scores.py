"""Scores of a whole dataset per level, streamed from files into files.

Captions are taken block by block, images block by block within; memory holds one block of each,
whatever the dataset's size. A finished block of captions is on the disk before the next begins, so
that an interrupted run goes on there. Images of one model may be scored with captions of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

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
    names = [*(f"level{n}.npy" for n in range(1, LEVELS + 1)), "total.npy"]
    blocks = _blocks(work)
    found = _open_matrices(work, names, (count, captions)) if blocks else None
    matrices = found or [new_matrix(work / file, (count, captions)) for file in names]
    blocks = _intact(blocks, matrices) if found else []
    *levels, total = matrices
    done = blocks[-1].stop if blocks else 0
    longest = texts.spec.max_words * LEVELS * 4 * texts.spec.dim
    block = max(1, CAPTION_BLOCK // longest)
    if done < captions:
        progress(what, done, captions)
    for start in range(done, captions, block):
        stop = min(start + block, captions)
        _score_block(images, texts, scorer, threads, levels, start, stop, progress, what)
        for first, rows in row_blocks(levels[0][:, start:stop]):
            part = slice(first, first + len(rows))
            total[part, start:stop] = _summed([level[part, start:stop] for level in levels])
        for matrix in matrices:
            matrix.flush()
        blocks.append(_Block(stop, _checksums(matrices, start, stop)))
        write_text(work / STATE, json.dumps([asdict(one) for one in blocks]))
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
    total = new_matrix(path, levels[0].shape)
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


def new_matrix(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """A float32 matrix in a file that has all of its room on the disk.

    Writing through a mapping into a file with holes kills the process when the disk is full.

    Args:
        path: Where; replaced if it exists.
        shape: Sizes.

    Raises:
        OutputError: if it can't be made, or the disk hasn't the room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Another inode than that of a matrix that somebody may still have mapped.
        path.unlink(missing_ok=True)
        matrix = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        raise OutputError(
            f"{path}: can't be written ({error.strerror}); name another folder with --cache"
        ) from None
    return matrix


@dataclass(frozen=True)
class _Block:
    """Captions that are scored.

    Attributes:
        stop: The caption behind the last.
        crc32: Of the block in every matrix.
    """

    stop: int
    crc32: tuple[int, ...]


def _blocks(work: Path) -> list[_Block]:
    """Blocks that an earlier run has finished, as far as its state is readable."""
    try:
        found = json.loads((work / STATE).read_text(encoding="utf-8"))
        return [_Block(int(one["stop"]), tuple(map(int, one["crc32"]))) for one in found]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _intact(blocks: Sequence[_Block], matrices: Sequence[np.memmap]) -> list[_Block]:
    """The blocks before the first that isn't as it was written: the others are scored again."""
    start, good = 0, []
    for block in blocks:
        fits = start < block.stop <= matrices[0].shape[1]
        if not fits or _checksums(matrices, start, block.stop) != block.crc32:
            break
        good.append(block)
        start = block.stop
    return good


def _checksums(matrices: Sequence[np.memmap], start: int, stop: int) -> tuple[int, ...]:
    found = []
    for matrix in matrices:
        crc = 0
        for _, rows in row_blocks(matrix[:, start:stop]):
            crc = zlib.crc32(np.ascontiguousarray(rows).data, crc)
        found.append(crc)
    return tuple(found)


def _open_matrices(
    work: Path, names: Sequence[str], shape: tuple[int, int]
) -> list[np.memmap] | None:
    """The matrices of an earlier run; None if one of them isn't what it was."""
    try:
        found = [np.lib.format.open_memmap(work / name, "r+") for name in names]
    except (OSError, ValueError):
        return None
    same = all(one.shape == shape and one.dtype == np.float32 for one in found)
    return found if same and all(one.flags.c_contiguous for one in found) else None
