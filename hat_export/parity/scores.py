"""Scores of a whole dataset per level, streamed from files into files.

The tiles are those of :func:`hat_export.score.tiles.streamed_tiles`: memory holds one block of
captions and one of images, whatever the dataset's size. A finished block of captions is on the disk
before the next begins, so that an interrupted run goes on there. Images of one model may be scored
with captions of another. Scoring is apart from writing: whoever scores gives the scores of the
tiles in order, and one process writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tokenize import TokenError

import numpy as np
from jaxtyping import Float32

from hat_export.base.files import write_text
from hat_export.base.progress import SILENT, Progress
from hat_export.errors import MALFORMED, InputError, OutputError
from hat_export.kernels import alignment_cpu
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.parity.embeddings import EncodedDataset
from hat_export.score.metrics import row_blocks
from hat_export.score.projection import Projection
from hat_export.score.tiles import Tile, Tiling, streamed_tiles
from hat_export.spec import LEVEL_ORDER, LEVELS, Direction, ModelSpec

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


#: Level 1, 2 and 3.
Levels = tuple[Scores, Scores, Scores]


@dataclass(frozen=True)
class TileScorer:
    """Scores tiles; captions stay prepared from one tile to the next.

    Attributes:
        images: Whose images.
        texts: Whose captions.
        scorer: Whose constants.
        threads: Threads of the kernel.
    """

    images: EncodedDataset
    texts: EncodedDataset
    scorer: Scorer
    threads: int
    _prepared: dict[range, list[LevelCaptions]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __call__(self, tile: Tile) -> Levels:
        """Scores of a tile by the native kernel, per level."""
        prepared = self._captions(tile.captions)
        folds = self.images.projections.levels
        found = {}
        for level in LEVEL_ORDER:
            regions, norms = self.images.image_level(level, tile.rows)
            fold = folds[level - 1]
            if fold is not None and not self._reduced:
                regions = fold.apply(regions)
            found[level] = alignment_cpu.score(
                regions,
                norms,
                prepared[level - 1],
                self.scorer.softmax_lambda,
                self.scorer.direction,
                self.threads,
            )
        return found[1], found[2], found[3]

    @property
    def _reduced(self) -> bool:
        """Words of t2i attend to full-width regions."""
        return self.scorer.direction == "i2t"

    def _captions(self, block: range) -> list[LevelCaptions]:
        if block not in self._prepared:
            self._prepared.clear()
            levels = zip(
                self.texts.caption_levels(slice(block.start, block.stop)),
                self.images.projections.levels,
                strict=True,
            )
            self._prepared[block] = [
                _folded(captions, fold) if self._reduced else captions for captions, fold in levels
            ]
        return self._prepared[block]


#: Scores tiles with a scorer; gives the levels of each, in order.
ScoreTiles = Callable[[TileScorer, Iterable[Tile]], Iterator[Levels]]


def score_here(scorer: TileScorer, tiles: Iterable[Tile]) -> Iterator[Levels]:
    """Score in this process."""
    return map(scorer, tiles)


@dataclass(frozen=True)
class TileWorkers:
    """Who scores tiles.

    Attributes:
        run: Scores them.
        parts: Into how many blocks at least the images are cut, so that there is work for several.
    """

    run: ScoreTiles = score_here
    parts: int = 1


def _tiles(images: EncodedDataset, texts: EncodedDataset, parts: int, start: int) -> Tiling:
    """All images for some captions, then for the next; captions before ``start`` left out."""
    image, text = images.spec, texts.spec
    sizes = (
        sum(4 * regions * image.dim for regions in image.level_regions),
        text.max_words * LEVELS * 4 * text.dim,
    )
    return streamed_tiles(len(images.image_rows), len(texts.text_rows), sizes, parts, start)


def score_levels(
    images: EncodedDataset,
    texts: EncodedDataset,
    scorer: Scorer,
    folder: Path,
    threads: int,
    progress: Progress = SILENT,
    what: str = "captions scored",
    workers: TileWorkers = TileWorkers(),
) -> LevelScores:
    """Score the images of one model with the captions of one, of the same or of another.

    Args:
        images: Whose images.
        texts: Whose captions.
        scorer: Whose constants.
        folder: The cache.
        threads: Threads of the kernel.
        progress: Told after each tile, in captions.
        what: What to call this in the progress.
        workers: Who scores.

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
    finished = _finished(work)
    kept = _open_matrices(work, names, (count, captions)) if finished else None
    matrices = kept or [new_matrix(work / file, (count, captions)) for file in names]
    finished = _intact(finished, matrices) if kept else []
    *levels, total = matrices
    done = finished[-1].stop if finished else 0
    if done < captions:
        progress.count(what, done, captions)
    tiles = list(_tiles(images, texts, workers.parts, done))
    found = workers.run(TileScorer(images, texts, scorer, threads), tiles)
    for tile, scores in zip(tiles, found, strict=True):
        for matrix, part in zip(matrices, (*scores, _summed(scores)), strict=True):
            matrix[tile.rows, tile.columns] = part
        progress.count(what, tile.done // count, captions)
        if tile.closes:
            for matrix in matrices:
                matrix.flush()
            block = tile.captions
            finished.append(_Finished(block.stop, _checksums(matrices, block.start, block.stop)))
            write_text(work / STATE, json.dumps([asdict(one) for one in finished]))
    first_level, second, third = levels
    return LevelScores((first_level, second, third), total)


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
class _Finished:
    """A block of captions that is scored.

    Attributes:
        stop: The caption behind the last.
        crc32: Of the block in every matrix.
    """

    stop: int
    crc32: tuple[int, ...]


def _finished(work: Path) -> list[_Finished]:
    """Blocks that an earlier run has finished, as far as its state is readable."""
    try:
        found = json.loads((work / STATE).read_text(encoding="utf-8"))
        return [_Finished(int(one["stop"]), tuple(map(int, one["crc32"]))) for one in found]
    except MALFORMED:
        return []


def _intact(blocks: Sequence[_Finished], matrices: Sequence[np.memmap]) -> list[_Finished]:
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
    except (OSError, ValueError, SyntaxError, TypeError, TokenError):
        return None
    same = all(one.shape == shape and one.dtype == np.float32 for one in found)
    return found if same and all(one.flags.c_contiguous for one in found) else None
