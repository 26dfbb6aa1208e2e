"""Features of a dataset in files: encoded once, recognised by content, resumed after a kill.

An image is recognised by the bytes of its file, a caption by its word pieces, an encoder by its
weights, its backend and the versions that compute. Files are the compact index's own
(:mod:`hat_export.index_file`): whatever was appended before an interruption is there afterwards,
with checksums. Stage outputs at levels 1 and 2 are kept instead of features, as the native kernel
takes them; words keep their full width, so that images of one model can be scored with captions of
another.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.bundle import Manifest, is_bundle, read_manifest
from hat_export.closing import Closing
from hat_export.dataset import CaptionDataset
from hat_export.environment import machine, package_versions
from hat_export.errors import IndexFileError, OutputError
from hat_export.evaluate import Progress, encode_captions, reject_nan, silent
from hat_export.index import ImageIndex
from hat_export.index_captions import CaptionIndex
from hat_export.index_file import IndexRecoveryWarning, RecordFile
from hat_export.index_projection import Projections, stored_widths
from hat_export.kernels.alignment_cpu import LevelCaptions
from hat_export.session import Session
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
    def read(cls, dataset: CaptionDataset, progress: Progress = silent) -> DatasetDigests:
        """Read every picture's file once.

        Raises:
            DatasetError: if one is missing.
        """
        found = []
        for number, entry in enumerate(dataset.entries, start=1):
            found.append(hashlib.sha256(dataset.store.read(entry.name)).hexdigest())
            progress("images hashed", number, len(dataset.entries))
        return cls(tuple(found))


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
        from hat_export.backends.torch_backend import TorchSession

        assert isinstance(session, TorchSession)
        weights = {component: session.weights_sha256(component) for component in OTHER_FILES}
    facts = {
        "spec": _neutral(session.spec).to_json(),
        "backend": session.backend,
        "versions": package_versions(),
        "cpu": machine()["cpu"],
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
        projections: Of the image features at levels 1 and 2.
        images: Stage outputs and norms, in a file.
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
    projections: Projections
    images: ImageIndex
    image_rows: Int64[np.ndarray, " images"]
    image_ids: tuple[str, ...]
    texts: CaptionIndex
    text_rows: Int64[np.ndarray, " captions"]
    text_ids: tuple[str, ...]
    reused: tuple[int, int]
    discarded: tuple[str, ...]

    def image_level(
        self, level: int, start: int, stop: int
    ) -> tuple[Float32[np.ndarray, "images regions width"], Float32[np.ndarray, "images regions"]]:
        """Stage outputs (features at level 3) of some images, and the norms of their features."""
        return self.images.level(level, self.image_rows[start:stop])

    def caption_levels(self, start: int, stop: int) -> tuple[LevelCaptions, ...]:
        """Words of some captions at full width, per level."""
        return self.texts.take(self.text_rows[start:stop].tolist()).levels

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
    progress: Progress = silent,
) -> EncodedDataset:
    """Encode what isn't in the cache yet.

    Args:
        session: Any backend.
        keys: From :func:`encoder_keys`.
        dataset: Images and captions.
        digests: Of its images.
        folder: The cache.
        batch: Images at a time, and captions at a time; at most so many are lost by a kill.
        progress: Called after each batch.

    Returns:
        The features, in files.

    Raises:
        InputError: if a feature is NaN or infinite.
        DatasetError: if an image can't be read.
        IndexFileError: if another process is writing to the cache.
        OutputError: if the cache can't be written, or the disk hasn't the room.
    """
    spec = _neutral(session.spec)
    projections = session.projections
    paths = [folder / f"images-{keys.image}.hatidx", folder / f"captions-{keys.text}.hatidx"]
    with warnings.catch_warnings():
        # An interrupted append is what the cache is for; what it left is discarded below.
        warnings.simplefilter("ignore", IndexRecoveryWarning)
        discarded = [line for path in paths if (line := _discard_if_damaged(path))]
        images = (
            ImageIndex.open(paths[0])
            if paths[0].exists()
            else ImageIndex.create(paths[0], spec, keys.image, projections, "float32")
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
    _encode_images(session, dataset, digests, missing, images, batch, progress)
    captions = dataset.captions
    some = [captions[position] for position in missing_texts]
    for chosen, features in encode_captions(session, some, batch, progress, reused[1]):
        names = [text_ids[missing_texts[position]] for position in chosen]
        texts.append(names, features, None)
    rows = []
    for ids, index in ((digests.images, images), (text_ids, texts)):
        place = {name: row for row, name in enumerate(index.ids)}
        rows.append(np.array([place[name] for name in ids], np.int64))
    return EncodedDataset(
        keys,
        session.spec,
        projections,
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


def _encode_images(
    session: Session,
    dataset: CaptionDataset,
    digests: DatasetDigests,
    missing: Sequence[int],
    images: ImageIndex,
    batch: int,
    progress: Progress,
) -> None:
    done = len(set(digests.images)) - len(missing)
    total = done + len(missing)
    if missing:
        progress("images encoded", done, total)
    for start in range(0, len(missing), batch):
        some = missing[start : start + batch]
        pictures = [dataset.store.open(dataset.entries[position].name) for position in some]
        reduced = session.reduce_images(pictures)
        reject_nan("images", reduced.levels)
        images.append([digests.images[position] for position in some], reduced, session.projections)
        progress("images encoded", done + start + len(some), total)


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
