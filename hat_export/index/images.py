"""The compact image index: images are added, scored, searched and removed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float32

from hat_export.base.progress import SILENT, Progress
from hat_export.errors import InputError
from hat_export.index import search
from hat_export.index.base import spec_sha256
from hat_export.index.image_records import ImageRecords, record_layout
from hat_export.index.record_file import RecordFile
from hat_export.index.search import Captions, Hits
from hat_export.index.storage import storage_named
from hat_export.score.features import ReducedImages
from hat_export.score.projection import Projections
from hat_export.spec import ModelSpec


class ImageIndex(ImageRecords):
    """Compact features of images in a ``.hatidx`` file; made by :meth:`create` or :meth:`open`.

    Adding and searching take the model's projections: see
    :class:`hat_export.index.base.FeatureIndex` for who gives them and when.
    """

    @classmethod
    def create(
        cls,
        path: Path,
        spec: ModelSpec,
        model: str,
        projections: Projections,
        precision: str = "float16",
    ) -> Self:
        """An empty image index.

        Args:
            path: Where; must not exist.
            spec: Architecture; of direction i2t, since the reduced form is for that only.
            model: SHA-256 of the model's weights, or any other name of them.
            projections: Of the model.
            precision: A name of :data:`hat_export.index.storage.STORAGES`.

        Raises:
            InputError: on an unknown precision, another direction, or projections of another
                architecture.
            OutputError: if the path exists or can't be written.
        """
        storage = storage_named(precision)
        if spec.direction != "i2t":
            raise InputError(
                f"{spec.name!r} scores in direction {spec.direction}; an index serves i2t only: "
                "score it with a session"
            )
        projections.check(spec)
        layout = record_layout(spec, storage)
        metadata = {
            "kind": cls.kind,
            "spec": spec.to_json(),
            "spec_sha256": spec_sha256(spec),
            "model": model,
            "projections_sha256": projections.sha256,
            "precision": precision,
            "sections": {
                name: {
                    "offset": part.offset,
                    "dtype": part.dtype.str,
                    "shape": list(part.shape),
                }
                for name, part in layout.items()
            },
        }
        index = cls(RecordFile.create(path, metadata))
        index.use(projections)
        return index

    @property
    def notice(self) -> str | None:
        """What was found of an interrupted append, one line; None if nothing."""
        return self.file.notice

    def add(self, ids: Sequence[str], images: ReducedImages) -> None:
        """Add images: all or none of them.

        Args:
            ids: One new identifier per image.
            images: Their features.

        Raises:
            InputError: if the features or ids don't fit, or a feature isn't finite.
            IndexFileError: if another process is appending.
            OutputError: if the file can't be written.
        """
        images.check(self.spec)
        if len(ids) != len(images):
            raise InputError(f"{len(ids)} ids for {len(images)} images; expected one each")
        # One image at a time: the projected features are needed for a moment only.
        payloads = []
        for number, name in enumerate(ids):
            levels = [level[number : number + 1] for level in images.levels]
            payloads.append(self._payload(name, levels))
        self.file.append(payloads, ids)

    def append(self, ids: Sequence[str], images: ReducedImages, projections: Projections) -> None:
        """Add images of an encoder whose projections are compared with the index's first.

        Args:
            ids: As for :meth:`add`.
            images: As for :meth:`add`.
            projections: Of the model that encoded them.

        Raises:
            InputError: as :meth:`add`, or if the index was made with other projections.
            IndexFileError: as :meth:`add`.
            OutputError: as :meth:`add`.
        """
        self.use(projections)
        self.add(ids, images)

    def remove(self, ids: Sequence[str]) -> None:
        """Take images out; what :meth:`RecordFile.delete` says."""
        super().remove(ids)
        self._forget_pooled()

    def score(
        self, captions: Captions, threads: int = 1, progress: Progress = SILENT
    ) -> Float32[np.ndarray, "images captions"]:
        """Exact score of every image with every caption.

        Args:
            captions: Word features, or an index of captions with folded words.
            threads: Threads of the kernel.
            progress: Told after each block with the pairs done so far.

        Returns:
            float32 [images, captions]; higher is better.

        Raises:
            InputError: if the captions are of another model.
            BackendUnavailableError: if the kernel's library is missing.
        """
        return search.score_images(self, captions, threads, progress)

    def coarse_scores(
        self, captions: Captions, candidates: str, threads: int = 1
    ) -> Float32[np.ndarray, "images captions"]:
        """Coarse score of every image with every caption, as :meth:`search` uses it.

        Args:
            captions: As for :meth:`score`.
            candidates: A name of :data:`hat_export.index.search.CANDIDATES`.
            threads: Threads of the kernel.

        Returns:
            float32 [images, captions].

        Raises:
            InputError: as :meth:`score`, and if there are no such candidates.
        """
        return search.coarse_scores(self, captions, candidates, threads)

    def search(
        self,
        captions: Captions,
        top_k: int,
        candidates: str = "pooled",
        rescore: int | None = None,
        threads: int = 1,
    ) -> list[Hits]:
        """The best images of every caption.

        Args:
            captions: As for :meth:`score`.
            top_k: Images wanted; fewer come back if the index has fewer.
            candidates: A name of :data:`hat_export.index.search.CANDIDATES`.
            rescore: Candidates that are scored exactly, at least ``top_k``; all images if None,
                which is the exact search.
            threads: Threads of the kernel.

        Returns:
            Hits per caption, in order.

        Raises:
            InputError: as :meth:`score`, and on a number or name out of range.
        """
        return search.search_images(self, captions, top_k, candidates, rescore, threads)
