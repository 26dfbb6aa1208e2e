"""What image and caption indexes share: a container of one kind, for one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from hat_export.base.closing import Closing
from hat_export.errors import IndexFileError, InputError, SpecError
from hat_export.index.record_file import RecordFile
from hat_export.index.storage import Storage, storage_named
from hat_export.score.projection import Projections
from hat_export.spec import ModelSpec


def spec_sha256(spec: ModelSpec) -> str:
    """Hash of a spec's fields, as hex digits."""
    return hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode()).hexdigest()


class FeatureIndex(Closing):
    """Features of a model in a ``.hatidx`` file.

    Adding and searching take the model's projections. The file holds their hash alone, so an index
    is given them once, by :meth:`create`, :meth:`open` or :meth:`use`, which compare the hash, and
    owns them from then on. Where an index is opened with its model,
    :func:`hat_export.index.query.open_search` gives it the session's.

    Attributes:
        kind: What the records are, as the file's metadata says it.
        file: The container.
        spec: Architecture that the features belong to.
        storage: Precision of the features.
    """

    kind: ClassVar[str]

    def __init__(self, file: RecordFile) -> None:
        self.file = file
        self._projections: Projections | None = None
        meta = file.metadata
        if meta.get("kind") != self.kind:
            raise IndexFileError(
                f"{file.path}: an index of {meta.get('kind')}; expected one of {self.kind}"
            )
        try:
            self.spec = ModelSpec.from_json(meta["spec"], str(file.path))
            self.storage: Storage = storage_named(str(meta["precision"]))
            self._check_facts(meta["model"], meta["projections_sha256"])
        except (KeyError, SpecError, InputError) as error:
            reason = f"no {error} in its header" if isinstance(error, KeyError) else str(error)
            raise IndexFileError(
                f"{file.path}: not an index of this version ({reason}); build the index again"
            ) from None

    @staticmethod
    def _check_facts(model: object, projections: object) -> None:
        if not isinstance(model, str) or not (projections is None or isinstance(projections, str)):
            raise InputError("model and projections_sha256 aren't text")

    @classmethod
    def open(cls, path: Path, projections: Projections | None = None) -> Self:
        """An existing index; reads its header and ids, not its features.

        Args:
            path: The file.
            projections: Of its model; None where nothing is added or searched, or not yet.

        Raises:
            IndexFileError: if it is missing, damaged or an index of another kind.
            InputError: if it was made with other projections.
        """
        index = cls(RecordFile.open(path))
        if projections is not None:
            try:
                index.use(projections)
            except InputError:
                index.close()
                raise
        return index

    def use(self, projections: Projections | None) -> None:
        """Take the projections that adding and searching need.

        Args:
            projections: Of the index's model; None for one without.

        Raises:
            InputError: if it was made with others.
        """
        given = None if projections is None else projections.sha256
        if given != self.projections_sha256:
            raise InputError(
                f"{self.file.path}: was made with other projections than those given; use the "
                f"model that the index was made with ({self.file.metadata['model']})"
            )
        self._projections = projections

    @property
    def projections_sha256(self) -> str | None:
        """Hash of the projections that it was made with; None without."""
        value: str | None = self.file.metadata["projections_sha256"]
        return value

    @property
    def projections(self) -> Projections | None:
        """Those that it was made with; None for an index without.

        Raises:
            InputError: if they weren't given yet.
        """
        if self._projections is None and self.projections_sha256 is not None:
            raise InputError(
                f"{self.file.path}: has the hash of its model's projections only; give them when "
                "it is opened, or open it with its model (open_search)"
            )
        return self._projections

    def __len__(self) -> int:
        """Number of records."""
        return len(self.file)

    @property
    def ids(self) -> list[str]:
        """Identifier of every record."""
        return self.file.ids

    def remove(self, ids: Sequence[str]) -> None:
        """Take records out; what :meth:`RecordFile.delete` says."""
        self.file.delete(ids)

    def compact(self) -> None:
        """Free the space of deleted records; what :meth:`RecordFile.compact` says."""
        self.file.compact()

    def verify(self) -> None:
        """Check every byte of the file; what :meth:`RecordFile.verify` says."""
        self.file.verify()

    def close(self) -> None:
        """Release the file."""
        self.file.close()
