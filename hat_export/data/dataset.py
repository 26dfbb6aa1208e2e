"""Images with their captions, and where the pictures lie: a folder or zips."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from PIL import Image

from hat_export.data.preprocess import decode_image
from hat_export.data.sources import UNREADABLE, read_member, read_regular
from hat_export.errors import DatasetError, InputError


@dataclass(frozen=True)
class CaptionedImage:
    """One image with its captions.

    Attributes:
        name: Path below the image root, with forward slashes.
        captions: Its captions, in order.
        labels: Other fields of the entry (EmojiCap: ``concept``, ``vendor``, ``group`` ...).
    """

    name: str
    captions: tuple[str, ...]
    labels: dict[str, str]


class ImageStore:
    """Pictures by name, from a folder or from zip files.

    People's folders and archives seldom are laid out as the dataset names its pictures: Flickr30K's
    JSON names no folder where its archive has one, COCO's names ``val2014`` where the folder given
    may be that one, or the one above. So a picture is looked for under its full name first, then
    under its last part: at the root, and one folder below it; in a zip anywhere, if it is there
    once.

    Args:
        roots: Folders and zip files, searched in order.

    Raises:
        DatasetError: if a root is missing or is no zip.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._folders = []
        self._members: dict[str, tuple[zipfile.ZipFile, str]] = {}
        self._by_last_part: dict[str, list[tuple[zipfile.ZipFile, str]]] = {}
        self.roots = tuple(roots)
        for root in roots:
            if root.is_dir():
                self._folders.append(root)
                self._folders += sorted(path for path in root.iterdir() if path.is_dir())
                continue
            try:
                archive = zipfile.ZipFile(root)
            except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
                raise DatasetError(
                    f"{root}: expected a folder or a zip of images ({error})"
                ) from None
            for member in archive.namelist():
                if member.endswith("/") or member.startswith("__MACOSX/"):
                    continue
                self._members.setdefault(member, (archive, member))
                last = member.rpartition("/")[2]
                self._by_last_part.setdefault(last, []).append((archive, member))

    def __reduce__(self) -> tuple[type[ImageStore], tuple[list[Path]]]:
        """Travels to another process as its paths; opened anew there."""
        return ImageStore, ([root.absolute() for root in self.roots],)

    def read(self, name: str) -> bytes:
        """The content of a picture's file.

        Raises:
            DatasetError: if there is none of that name, or it can't be read.
        """
        try:
            found = self._member(name)
            if found is not None:
                return read_member(*found)
            return read_regular(self._path(name))
        except FileNotFoundError:
            places = ", ".join(str(root) for root in self.roots)
            raise DatasetError(f"{name}: no such image in {places}") from None
        except UNREADABLE as error:
            raise DatasetError(f"{name}: can't be read ({error})") from None

    def open(self, name: str) -> Image.Image:
        """The picture, decoded.

        Raises:
            DatasetError: as :meth:`read`, or if it can't be decoded.
        """
        return decode(self.read(name), name)

    def _member(self, name: str) -> tuple[zipfile.ZipFile, str] | None:
        if name in self._members:
            return self._members[name]
        alike = self._by_last_part.get(name.rpartition("/")[2], [])
        if len(alike) > 1:
            raise DatasetError(
                f"{name}: the zips have {len(alike)} pictures that end so ({alike[0][1]}, "
                f"{alike[1][1]}); name only the zip that is meant with --images"
            )
        return alike[0] if alike else None

    def _path(self, name: str) -> Path:
        for folder in self._folders:
            path = folder / name
            if not path.resolve().is_relative_to(folder.resolve()):
                raise DatasetError(f"{name}: points outside of {folder}")
            if path.is_file():
                return path
            if (folder / path.name).is_file():
                return folder / path.name
        raise FileNotFoundError(name)


def decode(content: bytes, name: str) -> Image.Image:
    """A picture from the content of its file.

    Raises:
        DatasetError: naming the picture, if it can't be decoded.
    """
    try:
        return decode_image(content, name)
    except InputError as error:
        raise DatasetError(str(error)) from None


class PictureStore(Protocol):
    """Where a dataset's pictures come from."""

    def read(self, name: str) -> bytes:
        """The content of a picture's file, by which it is recognised."""

    def open(self, name: str) -> Image.Image:
        """The picture, decoded."""


@dataclass(frozen=True)
class CaptionDataset:
    """Images in order with their captions.

    Attributes:
        name: What reports call it.
        entries: Images and captions; the official protocol wants five captions each.
        store: Where the pictures are.
    """

    name: str
    entries: tuple[CaptionedImage, ...]
    store: PictureStore

    @cached_property
    def captions(self) -> list[str]:
        """Every caption, image by image."""
        return [caption for entry in self.entries for caption in entry.captions]

    @cached_property
    def owners(self) -> list[int]:
        """For every caption, the index of its image."""
        return [index for index, entry in enumerate(self.entries) for _ in entry.captions]

    def images(self) -> Iterator[Image.Image]:
        """The pictures in order, one at a time."""
        for entry in self.entries:
            yield self.store.open(entry.name)

    def take(self, captions: int) -> CaptionDataset:
        """The same images with their first ``captions`` captions only (Karpathy has up to 7)."""
        entries = tuple(
            replace(entry, captions=entry.captions[:captions]) for entry in self.entries
        )
        return replace(self, entries=entries)

    def limit(self, count: int | None) -> CaptionDataset:
        """Every k-th image, so that a subset is spread over the whole; None keeps all."""
        if count is None or count >= len(self.entries):
            return self
        if count < 1:
            raise DatasetError(f"a limit of {count} images leaves nothing; expected at least 1")
        chosen = [index * len(self.entries) // count for index in range(count)]
        return replace(self, entries=tuple(self.entries[index] for index in chosen))
