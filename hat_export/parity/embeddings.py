"""Features of a dataset in files: encoded once, recognised by content, resumed after a kill.

An image is recognised by the bytes of its file, a caption by its word pieces, an encoder by its
weights, its backend and the versions that compute. Files are the compact index's own
(:mod:`hat_export.index.record_file`): whatever was appended before an interruption is there
afterwards, with checksums. Stage outputs at levels 1 and 2 are kept instead of features, as the
native kernel takes them; words keep their full width, so that images of one model can be scored
with captions of another. Encoding is apart from writing: whoever encodes gives features batch by
batch, in order, and one process writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.base.closing import Closing
from hat_export.base.machine import describe_machine
from hat_export.base.packages import package_versions
from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import Manifest, is_bundle, read_manifest
from hat_export.data.dataset import CaptionDataset, PictureStore, decode
from hat_export.errors import DatasetError, IndexFileError, OutputError
from hat_export.index.captions import CaptionIndex
from hat_export.index.images import ImageIndex
from hat_export.index.record_file import IndexRecoveryWarning, RecordFile
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.runtime.evaluate import (
    CaptionBatch,
    caption_batches,
    encode_caption_batch,
    reject_nan,
)
from hat_export.runtime.session import Session
from hat_export.score.features import ReducedImages, TextFeatures
from hat_export.score.projection import Projections, stored_widths
from hat_export.spec import LEVELS, ModelSpec

#: Files of a bundle that only the other encoder depends on, or none.
OTHER_FILES = {
    "image": ("text.", "alignment.", "self_test.", "tokenizer."),
    "text": ("image.", "projections.", "alignment.", "self_test."),
}


@dataclass(frozen=True)
class EncoderKeys:
    """What recognises a model's encoders: hex digests of all that their features depend on.

    Attributes:
        image: Of the image encoder, with its preprocessing.
        text: Of the text encoder, with its tokenizer.
    """

    image: str
    text: str


@dataclass(frozen=True)
class DatasetDigests:
    """What recognises the pictures of a dataset.

    Attributes:
        images: SHA-256 of every picture's file, in order.
    """

    images: tuple[str, ...]

    @classmethod
    def read(cls, dataset: CaptionDataset, progress: Progress = SILENT) -> DatasetDigests:
        """Read every picture's file once.

        Raises:
            DatasetError: if one is missing.
        """
        found = []
        for number, entry in enumerate(dataset.entries, start=1):
            found.append(hashlib.sha256(dataset.store.read(entry.name)).hexdigest())
            progress.count("images hashed", number, len(dataset.entries))
        return cls(tuple(found))


@dataclass(frozen=True)
class PictureBatch:
    """Pictures that are encoded together.

    Attributes:
        names: Names in the dataset's store.
        digests: SHA-256 of each picture's file.
    """

    names: tuple[str, ...]
    digests: tuple[str, ...]


Batch = PictureBatch | CaptionBatch
Features = ReducedImages | TextFeatures

#: Encodes batches; gives the features of each, in order.
Encode = Callable[[Iterable[Batch]], Iterator[Features]]


def encode_batch(session: Session, store: PictureStore, batch: Batch) -> Features:
    """Encode pictures or captions.

    Args:
        session: Any backend.
        store: Of the pictures.
        batch: What to encode.

    Raises:
        InputError: if a feature is NaN or infinite.
        DatasetError: if a picture can't be read, or isn't the one that was hashed.
    """
    if isinstance(batch, CaptionBatch):
        return encode_caption_batch(session, batch)
    pictures = []
    for name, digest in zip(batch.names, batch.digests, strict=True):
        content = store.read(name)
        if hashlib.sha256(content).hexdigest() != digest:
            raise DatasetError(
                f"{name}: another picture than when the command began, or than on the machine "
                "where it began; start again with unchanged pictures, the same everywhere"
            )
        pictures.append(decode(content, name))
    reduced = session.reduce_images(pictures)
    reject_nan("images", reduced.levels)
    return reduced


def encoder_keys(target: Path, session: Session) -> EncoderKeys:
    """Recognise a model's encoders.

    Args:
        target: The bundle or checkpoint that the session was opened on.
        session: Open session.
    """
    if is_bundle(target):
        manifest = read_manifest(target)
        weights = {component: _bundle_files(manifest, component) for component in OTHER_FILES}
    else:
        from hat_export.runtime.backends.torch_backend import TorchSession

        assert isinstance(session, TorchSession)
        weights = {component: session.weights_sha256(component) for component in OTHER_FILES}
    facts = {
        "spec": _neutral(session.spec).to_json(),
        "backend": session.backend,
        "versions": package_versions(),
        "cpu": describe_machine()["cpu"],
    }
    vocabulary = session.tokenizer.to_json()
    return EncoderKeys(
        image=_digest({"weights": weights["image"], **facts}),
        text=_digest({"weights": weights["text"], "tokenizer": vocabulary, **facts}),
    )


@dataclass(frozen=True)
class EncodedDataset(Closing):
    """A dataset's features by one model.

    Attributes:
        keys: What recognises the encoders.
        spec: The model's.
        images: Stage outputs and norms, in a file, with the projections to features.
        image_rows: For every image of the dataset, its record.
        image_ids: For every image, what recognises it.
        texts: Word features at full width, in a file.
        text_rows: For every caption of the dataset, its record.
        text_ids: For every caption, what recognises it.
        reused: Images and captions that were found encoded.
        discarded: What was found damaged and is encoded again, as lines.
    """

    keys: EncoderKeys
    spec: ModelSpec
    images: ImageIndex
    image_rows: Int64[np.ndarray, " images"]
    image_ids: tuple[str, ...]
    texts: CaptionIndex
    text_rows: Int64[np.ndarray, " captions"]
    text_ids: tuple[str, ...]
    reused: tuple[int, int]
    discarded: tuple[str, ...]

    @property
    def projections(self) -> Projections:
        """Of the image features at levels 1 and 2; the index of the images owns them."""
        return self.images.projections

    def image_level(
        self, level: int, which: slice
    ) -> tuple[Float32[np.ndarray, "images regions width"], Float32[np.ndarray, "images regions"]]:
        """Stage outputs (features at level 3) of some images, and the norms of their features."""
        return self.images.level(level, self.image_rows[which])

    def caption_levels(self, which: slice) -> tuple[LevelCaptions, ...]:
        """Words of some captions at full width, per level."""
        return self.texts.take(self.text_rows[which].tolist()).levels

    def __reduce__(self) -> tuple[Any, ...]:
        """Travels to another process as the paths of its files; opened anew there."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name in ("images", "texts"):
            fields[name] = fields[name].file.path.absolute()
        return _reopened, (fields, self.projections)

    def close(self) -> None:
        """Release the files."""
        self.images.close()
        self.texts.close()


def encode_dataset(
    session: Session,
    keys: EncoderKeys,
    dataset: CaptionDataset,
    digests: DatasetDigests,
    folder: Path,
    batch: int = 50,
    progress: Progress = SILENT,
    encode: Encode | None = None,
) -> EncodedDataset:
    """Encode what isn't in the cache yet.

    Args:
        session: Any backend.
        keys: From :func:`encoder_keys`.
        dataset: Images and captions.
        digests: Of its images.
        folder: The cache.
        batch: Images at a time, and captions at a time; at most so many are lost by a kill.
        progress: Told after each batch.
        encode: Who encodes, by the same model; None: the session.

    Returns:
        The features, in files.

    Raises:
        InputError: if a feature is NaN or infinite.
        DatasetError: if an image can't be read.
        IndexFileError: if another process is writing to the cache.
        OutputError: if the cache can't be written, or the disk hasn't the room.
    """
    spec = _neutral(session.spec)
    paths = [folder / f"images-{keys.image}.hatidx", folder / f"captions-{keys.text}.hatidx"]
    with warnings.catch_warnings():
        # An interrupted append is what the cache is for; what it left is discarded below.
        warnings.simplefilter("ignore", IndexRecoveryWarning)
        discarded = [line for path in paths if (line := _discard_if_damaged(path))]
        images = (
            ImageIndex.open(paths[0], session.projections)
            if paths[0].exists()
            else ImageIndex.create(paths[0], spec, keys.image, session.projections, "float32")
        )
        texts = (
            CaptionIndex.open(paths[1])
            if paths[1].exists()
            else CaptionIndex.create(paths[1], spec, keys.text, None, "float32")
        )
    text_ids = _caption_ids(session, dataset)
    missing = _first_of_each(digests.images, images.ids)
    missing_texts = _first_of_each(text_ids, texts.ids)
    _check_room(folder, spec, len(missing), len(missing_texts))
    reused = (len(set(digests.images)) - len(missing), len(set(text_ids)) - len(missing_texts))
    captions = dataset.captions
    batches: list[Batch] = list(_picture_batches(dataset, digests, missing, batch))
    batches += caption_batches(session, [captions[n] for n in missing_texts], batch)
    features = (encode or partial(_encode_here, session, dataset.store))(batches)
    done, total = reused[0], reused[0] + len(missing)
    if missing:
        progress.count("images encoded", done, total)
    done_texts, total_texts = reused[1], reused[1] + len(missing_texts)
    for some, found in zip(batches, features, strict=True):
        if isinstance(some, PictureBatch):
            assert isinstance(found, ReducedImages)
            images.add(some.digests, found)
            done += len(some.digests)
            progress.count("images encoded", done, total)
        else:
            assert isinstance(found, TextFeatures)
            names = [text_ids[missing_texts[position]] for position in some.positions]
            texts.add(names, found)
            done_texts += len(names)
            progress.count("captions", done_texts, total_texts)
    rows = []
    for ids, index in ((digests.images, images), (text_ids, texts)):
        place = {name: row for row, name in enumerate(index.ids)}
        rows.append(np.array([place[name] for name in ids], np.int64))
    return EncodedDataset(
        keys,
        session.spec,
        images,
        rows[0],
        digests.images,
        texts,
        rows[1],
        text_ids,
        reused,
        tuple(discarded),
    )


def _discard_if_damaged(path: Path) -> str | None:
    """Remove a file of the cache that isn't as it was written; the line that tells so."""
    if not path.exists():
        return None
    try:
        with closing(RecordFile.open(path)) as file:
            if file.notice:
                file.verify_records()
            else:
                file.verify()
    except IndexFileError as error:
        path.unlink()
        return f"removed from the cache, to be encoded again: {error}"
    return None


def _picture_batches(
    dataset: CaptionDataset, digests: DatasetDigests, missing: Sequence[int], batch: int
) -> Iterator[PictureBatch]:
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        yield PictureBatch(
            tuple(dataset.entries[position].name for position in some),
            tuple(digests.images[position] for position in some),
        )


def _encode_here(
    session: Session, store: PictureStore, batches: Iterable[Batch]
) -> Iterator[Features]:
    for batch in batches:
        yield encode_batch(session, store, batch)


def _reopened(fields: dict[str, Any], projections: Projections) -> EncodedDataset:
    """Encoded features in another process.

    Raises:
        IndexFileError: if the files aren't there, or are other ones.
    """
    paths = {name: fields[name] for name in ("images", "texts")}
    for path in paths.values():
        if not path.exists():
            raise IndexFileError(
                f"{path}: not here; name a folder that all machines share with --cache"
            )
    images = ImageIndex.open(paths["images"], projections)
    return EncodedDataset(
        **{**fields, "images": images, "texts": CaptionIndex.open(paths["texts"])}
    )


def _caption_ids(session: Session, dataset: CaptionDataset) -> tuple[str, ...]:
    ids, mask = session.tokenizer.encode(dataset.captions)
    rows = zip(ids, mask.sum(1), strict=True)
    return tuple(hashlib.sha256(row[:length].tobytes()).hexdigest() for row, length in rows)


def _first_of_each(wanted: Sequence[str], known: Sequence[str]) -> list[int]:
    """Position of the first of each that isn't known; the same picture twice is encoded once."""
    seen = set(known)
    found = []
    for position, name in enumerate(wanted):
        if name not in seen:
            seen.add(name)
            found.append(position)
    return found


def _check_room(folder: Path, spec: ModelSpec, images: int, captions: int) -> None:
    widths = zip(spec.level_regions, stored_widths(spec), strict=True)
    needed = images * 4 * sum(regions * (width + 1) for regions, width in widths)
    needed += captions * 4 * LEVELS * spec.dim * min(20, spec.max_words)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"{folder}: {images} images and {captions} captions take about {needed / 1e9:.1f} GB "
            f"there, {free / 1e9:.1f} GB are free; name another folder with --cache, or use fewer "
            "images (--limit)"
        )


def _neutral(spec: ModelSpec) -> ModelSpec:
    """The spec without what the features don't depend on."""
    return replace(spec, name="any", direction="i2t", softmax_lambda=1.0)


def _bundle_files(manifest: Manifest, component: str) -> str:
    others = OTHER_FILES[component]
    files = {
        name: info.sha256 for name, info in manifest.files.items() if not name.startswith(others)
    }
    return _digest(files)


def _digest(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
