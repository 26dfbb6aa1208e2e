"""An append-only file of checksummed records: the container of image and caption indexes.

An append writes its data behind everything committed, waits for the disk, and only then writes one
commit slot of 64 bytes. An interruption at any moment leaves the state before or the state after.
The byte layout is :mod:`hat_export.index.record_format`'s.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from hat_export.base.atomic import partial_file, partial_folder, publish, try_lock
from hat_export.base.closing import Closing
from hat_export.base.files import sync_folder
from hat_export.errors import IndexFileError, InputError, OutputError
from hat_export.index.record_format import (
    ALIGNMENT,
    CRC,
    METADATA_START,
    PAGE,
    Bytes,
    Commit,
    SegmentKind,
    header_is_whole,
    newest,
    pack_header,
    pack_segment,
    padded_record,
    read_header,
    read_segment,
    record_is_whole,
)

#: Records that are copied in one step when a file is compacted: 44 MB at official size.
COMPACTED_TOGETHER = 64


class IndexRecoveryWarning(UserWarning):
    """An interrupted append was found and is ignored."""


class RecordFile(Closing):
    """Records with ids in one memory-mapped file; made by :meth:`create` or :meth:`open`.

    Attributes:
        path: The file.
        metadata: JSON values given at creation.
        ids: Identifier of every record, in order.
        notes: Lines that were added to the file over time, in order.
        notice: What was found of an interrupted append, one line; None if nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notice: str | None = None
        self.ids: list[str] = []
        self.notes: list[str] = []
        self.metadata: dict[str, Any] = {}
        self._commit = Commit(0, 0, 0, 0)
        self._starts = np.zeros(0, np.int64)
        self._sizes = np.zeros(0, np.int64)
        self._known: set[str] = set()
        self._deleted_bytes = 0
        self._map: Bytes = np.zeros(0, np.uint8)
        self._load()

    def __len__(self) -> int:
        """Number of records."""
        return len(self.ids)

    @classmethod
    def create(cls, path: Path, metadata: dict[str, Any]) -> Self:
        """A new file without records.

        Args:
            path: Where; must not exist.
            metadata: JSON values that stay as they are.

        Raises:
            OutputError: if the path exists or can't be written.
        """
        content = pack_header(metadata)
        if path.exists():
            raise OutputError(f"{path}: exists already; choose another output or append to it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial_file(path) as partial:
                with partial.open("wb") as file:
                    file.write(content)
                    _sync(file)
                partial.chmod(0o644)
                publish(partial, path, replace=False)
            sync_folder(path.parent)
        except OSError as error:
            raise _unwritable(path, error, "nothing was left behind") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing file. Reads the header, ids and checksums of those, not the records.

        Raises:
            IndexFileError: if it is missing, foreign, truncated or damaged.
        """
        return cls(path)

    def record(self, position: int) -> Bytes:
        """One record: a view of its payload with the padding behind it, uint8 [bytes]."""
        start, size = int(self._starts[position]), int(self._sizes[position])
        return self._map[start : start + size - CRC.size]

    def gather(self, positions: NDArray[np.int64], offset: int, size: int) -> Bytes:
        """The same bytes of some records, copied: uint8 [len(positions), size].

        Args:
            positions: Which records.
            offset: First byte within the record.
            size: Bytes of each.
        """
        chosen = np.empty((len(positions), size), np.uint8)
        for row, start in zip(chosen, self._starts[positions] + offset, strict=True):
            row[:] = self._map[start : start + size]
        return chosen

    @property
    def record_bytes(self) -> NDArray[np.int64]:
        """Size of every record in bytes, padding and checksum counted: int64 [records]."""
        return self._sizes

    def append(self, payloads: Sequence[bytes], ids: Sequence[str]) -> None:
        """Add records: all of them or, if it is interrupted, none.

        Args:
            payloads: Content of each record.
            ids: Identifier of each; not empty, and new to the file.

        Raises:
            InputError: if an id is empty, known already, or not valid Unicode.
            IndexFileError: if the file was changed or is being appended to by another process.
            OutputError: if it can't be written; the file is as before then.
        """
        encoded = self._checked_ids(ids)
        if len(payloads) != len(encoded):
            raise InputError(f"{len(payloads)} records with {len(encoded)} ids; expected as many")
        if not payloads:
            return
        records = [padded_record(payload) for payload in payloads]
        self._append_segment("records", records, encoded, len(self) + len(records))

    def delete(self, ids: Sequence[str]) -> None:
        """Take records out: all of them or, if it is interrupted, none.

        Their bytes stay in the file until it is written anew by :meth:`compact`.

        Args:
            ids: Of records that are there.

        Raises:
            InputError: if an id isn't in the file.
            IndexFileError: as :meth:`append`.
            OutputError: as :meth:`append`.
        """
        wanted = dict.fromkeys(ids)
        for name in wanted:
            if name not in self._known:
                raise InputError(f"id {name!r} isn't in {self.path}; nothing was deleted")
        if wanted:
            encoded = [name.encode() for name in wanted]
            self._append_segment("deletion", [], encoded, len(self) - len(wanted))

    def note(self, text: str) -> None:
        """Add a line to :attr:`notes`; errors as of :meth:`append`."""
        self._append_segment("notes", [], [text.encode()], len(self))

    def compact(self) -> None:
        """Write the file anew without deleted records; it takes the old one's place when complete.

        Raises:
            IndexFileError: as :meth:`append`.
            OutputError: if it can't be written; the file is as before then.
        """
        try:
            with (
                self.path.open("r+b") as old,
                partial_folder(self.path.parent, self.path.name) as work,
            ):
                self._lock(old)
                partial = work / self.path.name
                with closing(RecordFile.create(partial, self.metadata)) as anew:
                    for text in self.notes:
                        anew.note(text)
                    for first in range(0, len(self), COMPACTED_TOGETHER):
                        some = range(first, min(first + COMPACTED_TOGETHER, len(self)))
                        payloads = [self.record(position).tobytes() for position in some]
                        anew.append(payloads, [self.ids[position] for position in some])
                partial.replace(self.path)
                sync_folder(self.path.parent)
        except OSError as error:
            raise _unwritable(self.path, error, "it is as it was") from None
        self._load()

    @property
    def deleted_bytes(self) -> int:
        """Bytes that :meth:`compact` would free, at least."""
        return self._deleted_bytes

    def _append_segment(
        self, kind: SegmentKind, records: list[bytes], names: list[bytes], total: int
    ) -> None:
        head, directory = pack_segment(kind, records, names)
        before = self._commit
        after = Commit(
            before.sequence + 1,
            before.segments + 1,
            total,
            before.end + len(head) + sum(map(len, records)) + len(directory),
        )
        try:
            with self.path.open("r+b") as file:
                self._lock(file)
                try:
                    # What an interrupted append left is overwritten and cut off.
                    file.truncate(before.end)
                    file.seek(before.end)
                    file.write(head)
                    for record in records:
                        file.write(record)
                    file.write(directory)
                    _sync(file)
                except OSError:
                    file.truncate(before.end)
                    raise
                file.seek(after.place)
                file.write(after.slot())
                _sync(file)
        except OSError as error:
            raise _unwritable(self.path, error, "nothing was appended") from None
        # Only the new segment is read: an index grows by thousands of them.
        self._map = _mapped(self.path)
        self._load_segments(before.end, after, before.segments)
        self._commit = after
        self.notice = None

    def verify(self) -> None:
        """Read every byte and check it against its checksum.

        Raises:
            IndexFileError: at the first damaged part, or if an append was interrupted.
        """
        if self.notice:
            raise IndexFileError(self.notice)
        if not header_is_whole(self._map, self._commit):
            raise IndexFileError(f"{self.path}: the header is damaged; build the index again")
        self.verify_records()

    def verify_records(self) -> None:
        """Check the records alone; what an interrupted append left behind them may stand.

        Raises:
            IndexFileError: at the first that is damaged.
        """
        for position, name in enumerate(self.ids):
            start, size = int(self._starts[position]), int(self._sizes[position])
            if not record_is_whole(self._map[start : start + size].data):
                raise IndexFileError(
                    f"{self.path}: record {position} ({name!r}) is damaged (its checksum doesn't "
                    "fit); build the index again"
                )

    def close(self) -> None:
        """Release the mapping; arrays that were handed out stay valid."""
        self._map = np.zeros(0, np.uint8)

    def _checked_ids(self, ids: Sequence[str]) -> list[bytes]:
        seen: set[str] = set()
        encoded = []
        for name in ids:
            if not isinstance(name, str) or not name:
                raise InputError(f"id {name!r}: expected text that is not empty")
            if name in self._known or name in seen:
                raise InputError(f"id {name!r} is in {self.path} already; ids must differ")
            seen.add(name)
            try:
                encoded.append(name.encode())
            except UnicodeEncodeError:
                raise InputError(f"id {name!r} can't be stored as UTF-8; rename it") from None
        return encoded

    def _lock(self, file: BinaryIO) -> None:
        """Keep other writers out until the file is closed, and see what they have done before."""
        if not try_lock(file.fileno()):
            raise IndexFileError(
                f"{self.path}: another process is appending to it; try again when it is done"
            )
        head = file.read(METADATA_START)
        found = newest([head[PAGE:], head[2 * PAGE :]])
        # A compaction gives the name to another file: an append to the old one would be lost.
        renamed = not os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        if renamed or found != self._commit:
            raise IndexFileError(
                f"{self.path}: was changed by another process since it was opened; open it again"
            )

    def _load(self) -> None:
        self._map = _mapped(self.path)
        self.metadata, header = read_header(self.path, self._map)
        slots = [self._map[PAGE * n : PAGE * n + ALIGNMENT].tobytes() for n in (1, 2)]
        commit = newest(slots)
        if commit is None or commit.end < header:
            raise IndexFileError(f"{self.path}: both commit slots are damaged; build it again")
        if commit.end > len(self._map):
            raise IndexFileError(
                f"{self.path}: truncated: {len(self._map)} bytes where {commit.end} are committed; "
                "copy it again or build it again"
            )
        self._starts = self._sizes = np.zeros(0, np.int64)
        self.ids, self.notes, self._known, self._deleted_bytes = [], [], set(), 0
        self._load_segments(header, commit, 0)
        self._commit = commit
        torn = any(any(slot) and Commit.read(slot) is None for slot in slots)
        extra = len(self._map) - commit.end
        self.notice = None
        if torn or extra:
            self.notice = (
                f"{self.path}: an append was interrupted or its commit slot is damaged; "
                f"{commit.records} records are kept and {extra} bytes behind them ignored "
                "(the next append discards them)"
            )
            warnings.warn(self.notice, IndexRecoveryWarning, stacklevel=2)

    def _load_segments(self, at: int, commit: Commit, known: int) -> None:
        """Read the segments from number ``known`` on, the first of which lies at ``at``."""
        starts, sizes = [self._starts], [self._sizes]
        gone: set[int] = set()
        place_of: dict[str, int] | None = None
        for number in range(known, commit.segments):
            damaged = IndexFileError(
                f"{self.path}: segment {number} is damaged; build the index again"
            )
            try:
                segment = read_segment(self._map, at, commit.end)
            except ValueError:
                raise damaged from None
            at = segment.end
            if segment.kind == "records":
                starts.append(segment.starts)
                sizes.append(segment.sizes)
                if place_of is not None:
                    place_of |= {name: len(self.ids) + n for n, name in enumerate(segment.names)}
                self.ids += segment.names
                self._known.update(segment.names)
            elif segment.kind == "deletion":
                if place_of is None:
                    place_of = {name: n for n, name in enumerate(self.ids)}
                for name in segment.names:
                    if name not in place_of:
                        raise damaged
                    gone.add(place_of.pop(name))
                    self._known.discard(name)
            else:
                self.notes += segment.names
        if at != commit.end or len(self._known) != commit.records:
            raise IndexFileError(
                f"{self.path}: segments and commit don't fit; build the index again"
            )
        self._starts, self._sizes = np.concatenate(starts), np.concatenate(sizes)
        if gone:
            self._deleted_bytes += int(self._sizes[sorted(gone)].sum())
            left = [n for n in range(len(self.ids)) if n not in gone]
            self._starts, self._sizes = self._starts[left], self._sizes[left]
            self.ids = [self.ids[n] for n in left]


def _mapped(path: Path) -> Bytes:
    try:
        if path.stat().st_size == 0:
            raise IndexFileError(f"{path}: empty; expected a .hatidx file")
        # A plain view: the subclass makes every slice slower.
        return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise IndexFileError(f"{path}: can't be read as an index ({reason})") from None


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError, state: str) -> OutputError:
    return OutputError(f"{path}: can't be written ({error.strerror or error}); {state}")
