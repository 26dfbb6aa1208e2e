"""What image and caption indexes share: a container of one kind, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

from hat_export.base.closing import Closing
from hat_export.errors import IndexFileError, InputError, SpecError
from hat_export.index.record_file import RecordFile
from hat_export.index.storage import Storage, storage_named
from hat_export.spec import ModelSpec


class FeatureIndex(Closing):
    """Features of a model in a ``.hatidx`` file.

    Attributes:
        kind: What the records are, as the file's metadata says it.
        file: The container.
        spec: Architecture that the features belong to.
        storage: Precision of the features.
    """

    kind: ClassVar[str]

    def __init__(self, file: RecordFile) -> None:
        self.file = file
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
    def open(cls, path: Path) -> Self:
        """An existing index; reads its header and ids, not its features.

        Raises:
            IndexFileError: if it is missing, damaged or an index of another kind.
        """
        return cls(RecordFile.open(path))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.file)

    @property
    def ids(self) -> list[str]:
        """Identifier of every record."""
        return self.file.ids

    def delete(self, ids: Sequence[str]) -> None:
        """Take records out; what :meth:`RecordFile.delete` says."""
        self.file.delete(ids)

    def compact(self) -> None:
        """Free the space of deleted records; what :meth:`RecordFile.compact` says."""
        self.file.compact()

    def close(self) -> None:
        """Release the file."""
        self.file.close()
