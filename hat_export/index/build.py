"""Bulk indexing: images from anywhere into an index, so that an interruption costs little.

Encoding is apart from writing. An engine takes batches of references and gives encoded batches in
the same order, on this machine (:func:`encode_here`) or on many
(:mod:`hat_export.index.build_ray`); one process writes. So every engine makes the same index.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hat_export.base.atomic import sweep
from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import Bundle
from hat_export.data.sources import ImageReader, ImageRef
from hat_export.errors import IndexFileError, InputError
from hat_export.index.captions import CaptionIndex
from hat_export.index.images import ImageIndex
from hat_export.runtime.evaluate import encode_captions
from hat_export.runtime.session import Session
from hat_export.score.features import ReducedImages
from hat_export.score.projection import Projections

#: Images whose features are committed together: at official size 88 MB of file, and the work that
#: an interruption costs.
COMMITTED_TOGETHER = 128

Index = ImageIndex | CaptionIndex

_BUNDLE_NOTE = "bundle "
_SOURCE_NOTE = "source "


@dataclass(frozen=True)
class Skipped:
    """An image that didn't go into the index.

    Attributes:
        name: Its identifier.
        reason: Why, as a line.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class EncodedBatch:
    """What became of a batch of references.

    Attributes:
        names: Identifiers of the encoded images.
        images: Their features; None if there are none.
        skipped: The others.
    """

    names: tuple[str, ...]
    images: ReducedImages | None
    skipped: tuple[Skipped, ...]


#: Encodes batches; gives what became of each, in order.
Engine = Callable[[Iterable[Sequence[ImageRef]]], Iterator[EncodedBatch]]


@dataclass(frozen=True)
class IndexingResult:
    """What indexing did.

    Attributes:
        added: Images added.
        present: Images whose name the index had already.
        skipped: Images that couldn't be read, or whose name came twice.
    """

    added: int
    present: int
    skipped: tuple[Skipped, ...]


def open_index(
    path: Path, kind: type[Index], bundle: Bundle, projections: Projections, precision: str | None
) -> Index:
    """An index of a bundle's model: the one that is there, or a new one.

    Args:
        path: Of the index.
        kind: Images or captions.
        bundle: The bundle; a new index takes its checkpoint's hash as the model's.
        projections: Its projections, which the index owns from then on.
        precision: Storage precision; None: that of the existing index, else float16 for images and
            float32 for captions.

    Raises:
        IndexFileError: if there is an index of another kind, model or precision.
        OutputError: if it can't be written.
    """
    model = model_name(bundle)
    sweep(path.parent, path.name)
    if not path.exists():
        chosen = precision or ("float16" if kind is ImageIndex else "float32")
        return kind.create(path, bundle.manifest.spec, model, projections, chosen)
    index = kind.open(path)
    facts = index.file.metadata
    if (facts["model"], facts["projections_sha256"]) != (model, projections.sha256):
        index.close()
        raise IndexFileError(
            f"{path}: was made with another model (checkpoint {str(facts['model'])[:12]}) than "
            f"{bundle.path} ({model[:12]}); choose another output, or the bundle it was made with"
        )
    if precision not in (None, facts["precision"]):
        index.close()
        raise IndexFileError(
            f"{path}: stores {facts['precision']}, not {precision}; choose another output"
        )
    index.use(projections)
    return index


def model_name(bundle: Bundle) -> str:
    """What an index calls a bundle's model: its checkpoint's SHA-256."""
    return str(bundle.manifest.checkpoint["sha256"])


def note_origin(index: Index, bundle: Path, sources: Sequence[Path]) -> None:
    """Keep in the index where its model and its records come from."""
    lines = [_BUNDLE_NOTE + str(bundle.absolute())]
    lines += [_SOURCE_NOTE + str(source.absolute()) for source in sources]
    for line in lines:
        if line not in index.file.notes:
            index.file.note(line)


@dataclass(frozen=True)
class Origin:
    """Where an index comes from, as far as it says.

    Attributes:
        bundle: The bundle that it was last added to with.
        sources: Folders and files of its records.
    """

    bundle: Path | None
    sources: tuple[Path, ...]


def origin_of(index: Index) -> Origin:
    """What :func:`note_origin` has kept."""
    notes = index.file.notes
    bundles = [note for note in notes if note.startswith(_BUNDLE_NOTE)]
    sources = [note for note in notes if note.startswith(_SOURCE_NOTE)]
    return Origin(
        Path(bundles[-1].removeprefix(_BUNDLE_NOTE)) if bundles else None,
        tuple(Path(note.removeprefix(_SOURCE_NOTE)) for note in sources),
    )


def refuse_namesakes(index: ImageIndex, source: Path, refs: Sequence[ImageRef]) -> None:
    """Refuse images that have names of others: they would pass for those that are there.

    A source that the index knows, by :func:`note_origin`, may name what it has: indexing goes on.
    So may any list, whose names are paths.

    Args:
        index: Where to.
        source: A folder or file.
        refs: Its images.

    Raises:
        InputError: if the source is new and the index has one of its names already.
    """
    if source.suffix == ".txt" or source.absolute() in origin_of(index).sources:
        return
    known = set(index.ids)
    same = [ref.name for ref in refs if ref.name in known]
    if same:
        raise InputError(
            f"{source}: the index has {len(same)} of its {len(refs)} names ({same[0]!r} ...) from "
            "another source; index a folder above both, or leave those names out with --skip-known"
        )


def encode_refs(session: Session, reader: ImageReader, refs: Sequence[ImageRef]) -> EncodedBatch:
    """Read, preprocess and encode a batch; what can't be read is skipped."""
    return _encode(session, *_prepare(session, reader, refs))


def encode_here(session: Session, batches: Iterable[Sequence[ImageRef]]) -> Iterator[EncodedBatch]:
    """Encode batches in this process: images are read and decoded while others are encoded."""
    own = threading.local()

    def prepare(refs: Sequence[ImageRef]) -> tuple[list[str], np.ndarray, list[Skipped]]:
        if not hasattr(own, "reader"):
            own.reader = ImageReader()
        return _prepare(session, own.reader, refs)

    waiting: deque[Future[tuple[list[str], np.ndarray, list[Skipped]]]] = deque()
    pool = ThreadPoolExecutor(session.threads)
    try:
        for refs in batches:
            waiting.append(pool.submit(prepare, refs))
            if len(waiting) > session.threads + 1:
                yield _encode(session, *waiting.popleft().result())
        while waiting:
            yield _encode(session, *waiting.popleft().result())
    finally:
        pool.shutdown(cancel_futures=True)


def index_images(
    index: ImageIndex,
    refs: Sequence[ImageRef],
    encode: Engine,
    batch: int = 32,
    commit: int = COMMITTED_TOGETHER,
    progress: Progress = SILENT,
) -> IndexingResult:
    """Add images to an index; those whose name it has are left out.

    Args:
        index: Where to.
        refs: The images.
        encode: The engine.
        batch: Images that are encoded together.
        commit: Images that are written together.
        progress: Told after each batch.

    Raises:
        IndexFileError: if another process writes to the index.
        InputError: if a feature isn't finite: the weights or the precision can't be right.
        OutputError: if the index can't be written.
    """
    fresh, skipped = _fresh(refs, set(index.ids))
    present = len(refs) - len(fresh) - len(skipped)
    waiting: list[EncodedBatch] = []
    added = 0
    batches = (fresh[start : start + batch] for start in range(0, len(fresh), batch))
    for encoded in encode(batches):
        skipped += encoded.skipped
        waiting.append(encoded)
        count = sum(len(part.names) for part in waiting)
        if count >= commit:
            _write(index, waiting)
            added, count = added + count, 0
        progress.count("images indexed", present + len(skipped) + added + count, len(refs))
    added += sum(len(part.names) for part in waiting)
    _write(index, waiting)
    return IndexingResult(added, present, tuple(skipped))


def _fresh(refs: Sequence[ImageRef], known: set[str]) -> tuple[list[ImageRef], list[Skipped]]:
    """The images that are new, and those that can't be indexed by their name."""
    fresh, skipped = [], []
    seen: set[str] = set()
    for ref in refs:
        if ref.name in seen:
            skipped.append(Skipped(ref.name, "an image of the same name came before"))
            continue
        seen.add(ref.name)
        if ref.name in known:
            continue
        try:
            ref.name.encode()
            fresh.append(ref)
        except UnicodeEncodeError:
            name = ref.name.encode(errors="backslashreplace").decode()
            skipped.append(Skipped(name, "its name is not valid Unicode; rename it"))
    return fresh, skipped


def _write(index: ImageIndex, waiting: list[EncodedBatch]) -> None:
    """Append the encoded batches in one commit, and forget them."""
    parts = [batch.images for batch in waiting if batch.images is not None]
    names = [name for batch in waiting for name in batch.names]
    waiting.clear()
    if parts:
        levels = zip(*(part.levels for part in parts), strict=True)
        together = ReducedImages(tuple(np.concatenate(level) for level in levels))
        index.add(names, together)


def index_captions(
    session: Session,
    captions: Sequence[str],
    index: CaptionIndex,
    batch: int,
    progress: Progress = SILENT,
) -> IndexingResult:
    """Add captions to an index; each is its own identifier, and is there once.

    Args:
        session: Of the bundle that the index belongs to.
        captions: Texts.
        index: Where to.
        batch: Captions that are encoded together.
        progress: Told after each batch.
    """
    known = set(index.ids)
    fresh = [text for text in dict.fromkeys(captions) if text not in known]
    for start in range(0, len(fresh), 16 * batch):
        some = fresh[start : start + 16 * batch]
        for positions, features in encode_captions(session, some, batch):
            index.add([some[n] for n in positions.tolist()], features)
        progress.count("captions indexed", start + len(some), len(fresh))
    return IndexingResult(len(fresh), len(captions) - len(fresh), ())


def _prepare(
    session: Session, reader: ImageReader, refs: Sequence[ImageRef]
) -> tuple[list[str], np.ndarray, list[Skipped]]:
    names, pixels, skipped = [], [], []
    for ref in refs:
        try:
            pixels.append(session.preprocess([reader.read(ref)]))
            names.append(ref.name)
        except InputError as error:
            skipped.append(Skipped(ref.name, str(error).removeprefix(f"{ref.name}: ")))
        except MemoryError:
            skipped.append(Skipped(ref.name, "too large to decode in this machine's memory"))
    side = session.spec.image_size
    return names, np.concatenate(pixels or [np.empty((0, 3, side, side), np.float32)]), skipped


def _encode(
    session: Session, names: list[str], pixels: np.ndarray, skipped: list[Skipped]
) -> EncodedBatch:
    images = session.reduce_images(pixels) if names else None
    return EncodedBatch(tuple(names), images, tuple(skipped))
