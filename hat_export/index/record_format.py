"""The bytes of a record file: preamble, commit slots, segments.

The layout is described in ``docs/index_format.md``. Everything here is made from values or read
from bytes; the file itself is :mod:`hat_export.index.record_file`'s.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hat_export.errors import IndexFileError

Bytes = NDArray[np.uint8]

FORMAT_VERSION = 1
ALIGNMENT = 64
#: The preamble and both commit slots lie in pages of their own, so that a disk that loses a page
#: while it writes one slot loses neither the other slot nor the preamble.
PAGE = 4096
METADATA_START = 3 * PAGE

# The line ending shows a file that was transferred as text.
_MAGIC = b"HATIDX\r\n"
_COMMIT_MAGIC = b"HATCOMIT"
#: What a segment is, by its magic: records with their ids; or without records, a directory that
#: lists ids that go, or notes that come.
SegmentKind = Literal["records", "deletion", "notes"]
_SEGMENT_MAGIC: dict[SegmentKind, bytes] = {
    "records": b"HATSEGMT",
    "deletion": b"HATDELET",
    "notes": b"HATNOTES",
}
# magic, format version, header bytes, metadata bytes (unpadded), CRC-32 of the padded metadata
_PREAMBLE = struct.Struct("<8sIIII36x")
# magic, sequence, segments, records, end of the last segment in bytes
_COMMIT = struct.Struct("<8sQQQQ20x")
# magic, records, bytes of the records, bytes of the directory, CRC-32 of the directory
_SEGMENT = struct.Struct("<8sQQQI24x")
CRC = struct.Struct("<I")


@dataclass(frozen=True)
class Commit:
    """A committed state.

    Attributes:
        sequence: Number of the commit.
        segments: Segments that it holds.
        records: Records that are there, deleted ones not counted.
        end: Bytes that belong to it.
    """

    sequence: int
    segments: int
    records: int
    end: int

    def slot(self) -> bytes:
        """The 64 bytes of its commit slot."""
        return _sealed(
            _COMMIT.pack(_COMMIT_MAGIC, self.sequence, self.segments, self.records, self.end)
        )

    @property
    def place(self) -> int:
        """Where its slot lies; the slots take turns."""
        return PAGE * (1 + self.sequence % 2)

    @classmethod
    def read(cls, slot: bytes) -> Commit | None:
        """What a slot holds; None if that is no whole commit."""
        block = slot[:ALIGNMENT]
        if not _is_sealed(block) or block[: len(_COMMIT_MAGIC)] != _COMMIT_MAGIC:
            return None
        return cls(*_COMMIT.unpack(block[: _COMMIT.size])[1:])


def newest(slots: Sequence[bytes]) -> Commit | None:
    """The later of the commits that are whole; None if neither is."""
    commits = [commit for slot in slots if (commit := Commit.read(slot)) is not None]
    return max(commits, key=lambda commit: commit.sequence, default=None)


def pack_header(metadata: dict[str, Any]) -> bytes:
    """Preamble, the first commit and metadata of a file without records."""
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False).encode()
    padded = text + bytes(-len(text) % ALIGNMENT)
    header = METADATA_START + len(padded)
    preamble = _PREAMBLE.pack(_MAGIC, FORMAT_VERSION, header, len(text), zlib.crc32(padded))
    content = bytearray(METADATA_START) + padded
    content[:ALIGNMENT] = _sealed(preamble)
    content[PAGE : PAGE + ALIGNMENT] = Commit(0, 0, 0, header).slot()
    return bytes(content)


def read_header(path: Path, content: Bytes) -> tuple[dict[str, Any], int]:
    """Metadata, and the bytes before the first segment.

    Args:
        path: For errors.
        content: The whole file.

    Raises:
        IndexFileError: if it is foreign, truncated, damaged or of another format version.
    """
    preamble = content[:ALIGNMENT].tobytes()
    if preamble[: len(_MAGIC)] != _MAGIC:
        raise IndexFileError(f"{path}: not a hat-export index; expected a .hatidx file")
    if len(content) < METADATA_START:
        raise IndexFileError(f"{path}: truncated within its header; copy it again")
    damaged = IndexFileError(f"{path}: the header is damaged; build the index again")
    if not _is_sealed(preamble):
        raise damaged
    _, version, header, length, crc = _PREAMBLE.unpack(preamble[: _PREAMBLE.size])
    if version != FORMAT_VERSION:
        raise IndexFileError(
            f"{path}: index format {version}; this version reads {FORMAT_VERSION}: "
            "build the index again or use the version that wrote it"
        )
    if len(content) < header:
        raise IndexFileError(f"{path}: truncated within its header; copy it again")
    text = content[METADATA_START:header].tobytes()
    if zlib.crc32(text) != crc:
        raise damaged
    try:
        metadata = json.loads(text[:length])
    except (ValueError, RecursionError):
        metadata = {}
    if header < METADATA_START or not metadata or not isinstance(metadata, dict):
        raise damaged
    return metadata, int(header)


def header_is_whole(content: Bytes, commit: Commit) -> bool:
    """Whether the other commit slot and the gaps of the header are as they were written."""
    other = PAGE * (2 - commit.sequence % 2)
    slot = content[other : other + ALIGNMENT].tobytes()
    expected = commit.sequence - 1
    if expected < 0:
        whole = not any(slot)
    else:
        before = Commit.read(slot)
        whole = before is not None and before.sequence == expected
    gaps = ((ALIGNMENT, PAGE), (PAGE + ALIGNMENT, 2 * PAGE), (2 * PAGE + ALIGNMENT, 3 * PAGE))
    return whole and not any(content[first:last].any() for first, last in gaps)


def padded_record(payload: bytes) -> bytes:
    """A record: its payload, padding, and their checksum."""
    body = payload + bytes(-(len(payload) + CRC.size) % ALIGNMENT)
    return body + CRC.pack(zlib.crc32(body))


def record_is_whole(stored: memoryview) -> bool:
    """Whether a record is as its checksum says."""
    return bool(CRC.unpack(stored[-CRC.size :])[0] == zlib.crc32(stored[: -CRC.size]))


@dataclass(frozen=True)
class Segment:
    """What one segment says.

    Attributes:
        kind: Records, deleted ids or notes.
        names: Ids or notes.
        starts: First byte of every record.
        sizes: Bytes of every record.
        end: The byte behind the segment.
    """

    kind: SegmentKind
    names: list[str]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    end: int


def pack_segment(
    kind: SegmentKind, records: Sequence[bytes], names: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """What stands before the records of a segment, and behind them."""
    directory = np.array([len(record) // ALIGNMENT for record in records], "<u4").tobytes()
    directory += np.array([len(name) for name in names], "<u4").tobytes()
    directory += b"".join(names)
    directory += bytes(-len(directory) % ALIGNMENT)
    size = sum(map(len, records))
    head = _SEGMENT.pack(
        _SEGMENT_MAGIC[kind], len(names), size, len(directory), zlib.crc32(directory)
    )
    return _sealed(head), directory


def read_segment(content: Bytes, at: int, end: int) -> Segment:
    """A segment that lies at ``at`` and within ``end``.

    Raises:
        ValueError: if it is damaged.
    """
    head = content[at : at + ALIGNMENT].tobytes()
    if not _is_sealed(head):
        raise ValueError("its head is damaged")
    magic, count, payload, listing, crc = _SEGMENT.unpack(head[: _SEGMENT.size])
    first = at + ALIGNMENT
    behind = first + payload + listing
    if behind > end:
        raise ValueError("it is longer than what was committed")
    directory = content[first + payload : behind].tobytes()
    if zlib.crc32(directory) != crc:
        raise ValueError("its directory is damaged")
    # A checksum is no proof: whoever writes a file writes its checksums, too.
    kinds = {value: kind for kind, value in _SEGMENT_MAGIC.items()}
    if magic not in kinds:
        raise ValueError("it is of an unknown kind")
    kind = kinds[magic]
    none = np.zeros(0, np.int64)
    if kind != "records":
        return Segment(kind, _names(directory, 0, count), none, none, behind)
    names = _names(directory, 4 * count, count)
    sizes = np.frombuffer(directory, "<u4", count).astype(np.int64) * ALIGNMENT
    if (sizes < ALIGNMENT).any() or sizes.sum() != payload or len(set(names)) != count:
        raise ValueError("its records don't fit")
    return Segment(kind, names, first + np.cumsum(sizes) - sizes, sizes, behind)


def _names(directory: bytes, at: int, count: int) -> list[str]:
    """Texts of a directory whose lengths stand at ``at``; ValueError if there are not so many."""
    names = []
    place = at + 4 * count
    if place > len(directory):
        raise ValueError("more names than there is room for")
    for length in np.frombuffer(directory, "<u4", count, at).tolist():
        if place + length > len(directory):
            raise ValueError("a name that is longer than the directory")
        names.append(directory[place : place + length].decode())
        place += length
    return names


def _sealed(block: bytes) -> bytes:
    """60 bytes and their checksum."""
    return block + CRC.pack(zlib.crc32(block))


def _is_sealed(block: bytes) -> bool:
    return len(block) == ALIGNMENT and _sealed(block[: -CRC.size]) == block
