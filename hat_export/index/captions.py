"""The index of captions: captions are added, searched by an image, and removed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

from hat_export.errors import InputError
from hat_export.index import search
from hat_export.index.base import spec_sha256
from hat_export.index.caption_records import CaptionRecords, word_widths
from hat_export.index.record_file import RecordFile
from hat_export.index.search import Hits
from hat_export.index.storage import storage_named
from hat_export.score.captions import prepare
from hat_export.score.features import ReducedImages, TextFeatures
from hat_export.score.projection import Projections, pooled_width
from hat_export.spec import ModelSpec


class CaptionIndex(CaptionRecords):
    """Prepared captions in a ``.hatidx`` file; made by :meth:`create` or :meth:`open`.

    Adding and searching take the model's projections, if the words are folded: see
    :class:`hat_export.index.base.FeatureIndex` for who gives them and when.
    """

    @classmethod
    def create(
        cls,
        path: Path,
        spec: ModelSpec,
        model: str,
        projections: Projections | None,
        precision: str = "float32",
    ) -> Self:
        """An empty caption index.

        Args:
            path: Where; must not exist.
            spec: Architecture.
            model: SHA-256 of the model's weights, or any other name of them.
            projections: Of the model, to fold the words; None to keep their full width.
            precision: A name of :data:`hat_export.index.storage.STORAGES`.

        Raises:
            InputError: on an unknown precision or projections of another architecture.
            OutputError: if the path exists or can't be written.
        """
        storage_named(precision)
        if projections is not None:
            projections.check(spec)
        metadata = {
            "kind": cls.kind,
            "spec": spec.to_json(),
            "spec_sha256": spec_sha256(spec),
            "model": model,
            "projections_sha256": None if projections is None else projections.sha256,
            "precision": precision,
            "widths": list(word_widths(spec, projections is not None)),
            "pooled_width": pooled_width(spec),
        }
        index = cls(RecordFile.create(path, metadata))
        index.use(projections)
        return index

    def add(self, ids: Sequence[str], texts: TextFeatures) -> None:
        """Add captions: all or none of them.

        Args:
            ids: One new identifier per caption.
            texts: Their word features.

        Raises:
            InputError: if the features or ids don't fit.
            IndexFileError: if another process is appending.
            OutputError: if the file can't be written.
        """
        if texts.levels[0].shape[2] != self.spec.dim:
            raise InputError(
                f"text features are {texts.levels[0].shape[2]} wide; expected {self.spec.dim}"
            )
        if not len(texts):
            self.file.append([], ids)
            return
        captions = prepare(texts, self.projections)
        payloads = [self._payload(captions.one(number)) for number in range(len(captions))]
        self.file.append(payloads, ids)

    def append(
        self, ids: Sequence[str], texts: TextFeatures, projections: Projections | None
    ) -> None:
        """Add captions of a model whose projections are compared with the index's first.

        Args:
            ids: As for :meth:`add`.
            texts: As for :meth:`add`.
            projections: Of the model that encoded them; None for words of full width.

        Raises:
            InputError: as :meth:`add`, or if the index was made with other projections.
            IndexFileError: as :meth:`add`.
            OutputError: as :meth:`add`.
        """
        self.use(projections)
        self.add(ids, texts)

    def search(
        self, images: ReducedImages, top_k: int, rescore: int | None = None, threads: int = 1
    ) -> list[Hits]:
        """The best captions of every image.

        Args:
            images: In reduced form.
            top_k: Captions wanted; fewer come back if the index has fewer.
            rescore: Captions that are scored exactly, those of the nearest pooled vectors, at least
                ``top_k``; all if None, which is the exact search.
            threads: Threads of the kernel.

        Returns:
            Hits per image, in order; equal scores in the order of the index.

        Raises:
            InputError: if features or numbers don't fit.
        """
        return search.search_captions(self, images, top_k, rescore, threads)
