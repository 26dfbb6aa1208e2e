"""Image-caption pairs in JSONL or CSV: one line per image or per caption.

Recognised columns: the picture's file is ``image``, ``file_name``, ``filename``, ``filepath`` or
``path``; captions are ``captions`` (a list), ``caption``, ``text``, ``sentence``, ``comment``, or
numbered ones such as ``caption_0`` to ``caption_4``. Lines of the same picture belong together. A
column ``split`` chooses lines; without one every line is taken.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hat_export.data.dataset import CaptionDataset, CaptionedImage, ImageStore
from hat_export.errors import DatasetError

IMAGE_COLUMNS = ("image", "file_name", "filename", "filepath", "path", "image_name")
CAPTION_COLUMNS = ("captions", "caption", "text", "sentence", "sentences", "comment")
SPLIT_COLUMN = "split"
_NUMBERED = re.compile(r"(?:caption|text|sentence|comment)[ _]?(?:number[ _]?)?\d+")


Row = Mapping[str, Any]


def read_jsonl(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A dataset with one JSON object per line.

    Args:
        path: The file.
        split: Which lines, where they say so.
        images: Folders or zips; default: the file's folder.

    Raises:
        DatasetError: naming the line and what is wrong with it.
    """
    return _dataset(path, split, images, _json_rows(path))


def read_csv(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A dataset with one line per image or caption and the columns' names in the first.

    Args:
        path: The file; separated by commas, semicolons, tabs or bars, as its first line shows.
        split: Which lines, where there is such a column.
        images: Folders or zips; default: the file's folder.

    Raises:
        DatasetError: naming the line and what is wrong with it.
    """
    return _dataset(path, split, images, _csv_rows(path))


def _json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        row = json_line(line, f"{path}: line {number}")
        if not isinstance(row, dict):
            raise DatasetError(f"{path}: line {number} is no JSON object")
        yield number, row


def json_line(line: str | bytes, where: str) -> Any:
    """The value of a line of a JSON lines file; ``where`` names it in errors.

    Raises:
        DatasetError: if it is no JSON, or nested deeper than Python follows.
    """
    try:
        return json.loads(line)
    except RecursionError:
        raise DatasetError(f"{where} is nested too deeply") from None
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON ({error})") from None


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    lines = _lines(path)
    first = next(iter(lines), "")
    delimiter = max(",;\t|", key=first.count)
    reader = csv.DictReader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        for row in reader:
            if row.get(None):
                raise DatasetError(
                    f"{path}: line {reader.line_num} has more fields than the first line names; "
                    f"put quotes around a caption that holds {delimiter!r}"
                )
            yield reader.line_num, {str(key).strip(): value for key, value in row.items()}
    except csv.Error as error:
        raise DatasetError(f"{path}: line {reader.line_num} can't be read ({error})") from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not a readable text file ({error})") from None


def _dataset(
    path: Path, split: str, images: Sequence[Path], rows: Iterable[tuple[int, Row]]
) -> CaptionDataset:
    captions: dict[str, list[str]] = {}
    splits: set[str] = set()
    for number, row in rows:
        stated = row.get(SPLIT_COLUMN)
        if stated is not None:
            splits.add(str(stated))
            if stated != split:
                continue
        name, texts = parse_row(row, f"{path}: line {number}")
        captions.setdefault(name, []).extend(texts)
    if not captions:
        there = f"no line of split {split!r}; it has: {', '.join(sorted(splits))}"
        raise DatasetError(f"{path}: {there if splits else 'no line in it'}")
    entries = tuple(CaptionedImage(name, tuple(texts), {}) for name, texts in captions.items())
    store = ImageStore(images or [path.parent])
    return CaptionDataset(f"{path.stem}/{split}" if splits else path.stem, entries, store)


def parse_row(row: Row, where: str) -> tuple[str, list[str]]:
    """Picture and captions of one line.

    Args:
        row: Its fields.
        where: For messages.

    Raises:
        DatasetError: if one of them isn't there.
    """
    name = next((row[key] for key in IMAGE_COLUMNS if isinstance(row.get(key), str)), None)
    if not name:
        raise DatasetError(
            f"{where}: no picture; expected a column {', '.join(IMAGE_COLUMNS)}, there are: "
            f"{', '.join(map(str, row))}"
        )
    return str(name).strip(), captions_of(row, where)


def captions_of(row: Row, where: str) -> list[str]:
    """Captions of one line.

    Args:
        row: Its fields.
        where: For messages.

    Raises:
        DatasetError: if there is none, or one isn't text.
    """
    keys = [key for key in CAPTION_COLUMNS if row.get(key)]
    keys = keys[:1] or sorted(key for key in row if _NUMBERED.fullmatch(key) and row[key])
    found: list[str] = []
    for key in keys:
        value = row[key]
        found += _texts(value, f"{where}: {key}")
    if not found:
        raise DatasetError(
            f"{where}: no caption; expected a column {', '.join(CAPTION_COLUMNS)}, there are: "
            f"{', '.join(map(str, row))}"
        )
    return found


def _texts(value: Any, where: str) -> list[str]:
    """Captions in a field: text, a list of texts, or of Karpathy's objects with ``raw``."""
    if isinstance(value, str):
        if value.lstrip().startswith("["):  # a list that was written into one CSV field
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return [value]
        else:
            return [value]
    if not isinstance(value, (list, tuple)):
        raise DatasetError(f"{where}: expected text or a list of texts, got {type(value).__name__}")
    texts = [item.get("raw") if isinstance(item, dict) else item for item in value]
    if not all(isinstance(text, str) for text in texts):
        raise DatasetError(f"{where}: expected a list of texts")
    return [str(text) for text in texts]
