"""Where the images of an index come from: folders, zips, tars, Parquet files and lists.

Listing is apart from reading: a reference says where an image lies, travels to other processes, and
is read there.
"""

from __future__ import annotations

import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hat_export.base.closing import Closing
from hat_export.errors import BackendUnavailableError, DatasetError, InputError

#: What counts as an image in a folder, zip or tar, by the end of its name in lower case.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".jp2", ".avif", ".ppm", ".pgm"),
)
#: An encoded image beyond this is refused: what a small archive unpacks to has no other limit.
MAX_ENCODED_BYTES = 256 << 20


#: What reading a damaged file or archive raises.
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    RuntimeError,  # an encrypted zip, or one packed by an unknown method
    EOFError,
    MemoryError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass(frozen=True)
class ImageRef:
    """Where an image lies.

    Attributes:
        name: Its identifier in the index.
        kind: Name in :data:`CONTAINERS`.
        path: The file, or the container that holds it.
        place: Where in the container: a zip's member, offset and size in a tar, or column, row
            group and row in a Parquet file; empty for a file.
    """

    name: str
    kind: str
    path: str
    place: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class Container:
    """A kind of image container.

    Attributes:
        list_refs: Every image of one, in a fixed order; takes the path and a prefix for names.
        open: Opens one for :attr:`read`.
        read: The encoded image at a place.
    """

    list_refs: Callable[[Path, str], Iterator[ImageRef]]
    open: Callable[[str], Any]
    read: Callable[[Any, tuple[Any, ...]], bytes]


def list_images(sources: Sequence[Path]) -> Iterator[ImageRef]:
    """Every image of some sources, in a fixed order.

    Names: an image of a folder is named by its path below the folder, one of a zip, tar or Parquet
    file by that file's name and its own, one of a list as it stands in the list.

    Args:
        sources: Folders, ``.zip``, ``.tar``, ``.parquet`` files, and ``.txt`` lists of paths.

    Raises:
        DatasetError: if a source is missing, unreadable or of no such kind.
        BackendUnavailableError: if a Parquet file is given and pyarrow isn't installed.
    """
    for source in sources:
        if not source.exists():
            raise DatasetError(f"{source}: no such folder or file of images")
        if source.is_dir():
            yield from _list_folder(source)
        elif source.suffix == ".txt":
            yield from _list_list(source)
        elif source.suffix.removeprefix(".") in CONTAINERS:
            kind = source.suffix.removeprefix(".")
            yield from CONTAINERS[kind].list_refs(source, f"{source.name}/")
        else:
            raise DatasetError(
                f"{source}: expected a folder, .zip, .tar, .parquet, or a .txt with a path per line"
                + ("; unpack it: a compressed tar can't be read from the middle" * _packed(source))
            )


class ImageReader(Closing):
    """Reads referenced images and keeps the last container open; not for several threads."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._opened: Any = None

    def read(self, ref: ImageRef) -> bytes:
        """The encoded image.

        Raises:
            InputError: if it can't be read, is empty or is unreasonably large.
        """
        container = CONTAINERS[ref.kind]
        try:
            if ref.kind == "file":
                content = container.read(ref.path, ())
            else:
                if self._key != (ref.kind, ref.path):
                    self.close()
                    self._opened = container.open(ref.path)
                    self._key = (ref.kind, ref.path)
                content = container.read(self._opened, ref.place)
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise InputError(f"{ref.name}: can't be read ({reason})") from None
        if not content:
            raise InputError(f"{ref.name}: is empty")
        return content

    def close(self) -> None:
        """Close the container that is open."""
        if self._opened is not None:
            self._opened.close()
        self._opened = self._key = None


def _packed(path: Path) -> bool:
    return path.suffix == ".tgz" or ".tar." in path.name


def _is_image(name: str) -> bool:
    base = name.rpartition("/")[2]
    return base.lower().endswith(IMAGE_ENDINGS) and not base.startswith("._")  # macOS's shadows


def _list_folder(folder: Path) -> Iterator[ImageRef]:
    for place, below, files in os.walk(folder):
        below.sort()
        for name in sorted(files):
            if _is_image(name):
                path = Path(place) / name
                yield ImageRef(path.relative_to(folder).as_posix(), "file", str(path.absolute()))


def _list_list(listing: Path) -> Iterator[ImageRef]:
    try:
        with listing.open(encoding="utf-8") as lines:
            for line in lines:
                name = line.rstrip("\r\n")
                if name.strip():
                    yield ImageRef(name, "file", str((listing.parent / name).absolute()))
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{listing}: not a readable list of paths ({error})") from None


def _list_zip(path: Path, prefix: str) -> Iterator[ImageRef]:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if _is_image(member.filename):
                    place = (member.filename,)
                    name = prefix + member.filename
                    yield ImageRef(name, "zip", str(path.absolute()), place)
    except UNREADABLE as error:
        raise DatasetError(f"{path}: not a readable zip ({error})") from None


def _read_zip(archive: zipfile.ZipFile, place: tuple[str]) -> bytes:
    return read_member(archive, place[0])


def read_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a zip's member; ValueError if it is beyond :data:`MAX_ENCODED_BYTES`."""
    _check_size(archive.getinfo(name).file_size)
    with archive.open(name) as file:
        # The size that the archive states may be false.
        content = file.read(MAX_ENCODED_BYTES + 1)
    _check_size(len(content))
    return content


def _list_tar(path: Path, prefix: str) -> Iterator[ImageRef]:
    try:
        # "r:" and not "r:*": a compressed tar would have to be read up to each image.
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and _is_image(member.name):
                    place = (member.offset_data, member.size)
                    yield ImageRef(prefix + member.name, "tar", str(path.absolute()), place)
    except (*UNREADABLE, tarfile.TarError) as error:
        raise DatasetError(
            f"{path}: not a readable, uncompressed tar ({error}); unpack it or make one with tar cf"
        ) from None


def _open_binary(path: str) -> BinaryIO:
    return Path(path).open("rb")


def _read_tar(file: BinaryIO, place: tuple[int, int]) -> bytes:
    offset, size = place
    _check_size(size)
    file.seek(offset)
    content = file.read(size)
    if len(content) != size:
        raise EOFError(f"{size} bytes at {offset}, but the tar ends before")
    return content


class _ParquetImages:
    """A Parquet file whose last row group of images is kept."""

    def __init__(self, path: str) -> None:
        from pyarrow.parquet import ParquetFile

        self._file = ParquetFile(path)
        self._key: tuple[str, int] | None = None
        self._column: Any = None

    def read(self, column: str, group: int, row: int) -> bytes:
        """The encoded image of one row; empty if the cell is."""
        if self._key != (column, group):
            self._column = self._file.read_row_group(group, columns=[column]).column(0)
            self._key = (column, group)
        value = self._column[row].as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        _check_size(len(content or b""))
        return content or b""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _list_parquet(path: Path, prefix: str) -> Iterator[ImageRef]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise BackendUnavailableError(
            f"{path}: Parquet files need pyarrow; install it with: pip install "
            "'hat-export[parquet]'"
        ) from None
    try:
        with ParquetFile(path) as file:
            column = _image_column(file.schema_arrow, path)
            number = 0
            for group in range(file.num_row_groups):
                for row in range(file.metadata.row_group(group).num_rows):
                    place = (column, group, row)
                    yield ImageRef(f"{prefix}{number}", "parquet", str(path.absolute()), place)
                    number += 1
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DatasetError(f"{path}: not a readable Parquet file ({error})") from None


def _image_column(schema: Any, path: Path) -> str:
    """The first column of bytes, or of Hugging Face's {bytes, path}."""
    import pyarrow

    for field in schema:
        kind = field.type
        if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return str(field.name)
        if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
            return str(field.name)
    raise DatasetError(
        f"{path}: no column of images; expected binary, or a struct with a field 'bytes', among "
        f"{', '.join(schema.names)}"
    )


def _read_file(path: str, place: tuple[()]) -> bytes:
    return read_regular(Path(path))


def read_regular(path: Path) -> bytes:
    """The content of a regular file; ValueError if it is beyond :data:`MAX_ENCODED_BYTES`.

    A device or a pipe has no size, and reading one may never end.
    """
    state = path.stat()
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("no regular file")
    _check_size(state.st_size)
    return path.read_bytes()


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_ENCODED_BYTES:
        raise ValueError(f"{size} bytes; at most {MAX_ENCODED_BYTES} are read")


def _list_file(path: Path, prefix: str) -> Iterator[ImageRef]:
    yield ImageRef(path.name, "file", str(path.absolute()))


#: Every kind of place that an image can lie in.
CONTAINERS: dict[str, Container] = {
    "file": Container(_list_file, str, _read_file),
    "zip": Container(_list_zip, zipfile.ZipFile, _read_zip),
    "tar": Container(_list_tar, _open_binary, _read_tar),
    "parquet": Container(_list_parquet, _ParquetImages, lambda images, place: images.read(*place)),
}
