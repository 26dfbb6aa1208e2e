"""Hugging Face ``datasets`` folders: ``save_to_disk``, parquet files, ``imagefolder``.

The library is optional (``pip install 'hat-export[datasets]'``) and only ever reads what lies on
the disk: no script of a dataset is run, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hat_export.data.dataset import CaptionDataset, CaptionedImage, decode
from hat_export.data.sources import UNREADABLE, read_regular
from hat_export.data.tables import captions_of, json_line
from hat_export.errors import BackendUnavailableError, DatasetError

#: Columns that hold pictures, in the order in which they are looked for.
IMAGE_COLUMNS = ("image", "img", "picture", "jpg", "png")

#: What ``save_to_disk`` writes for a dataset, and for one with splits.
SAVED = ("dataset_info.json", "dataset_dict.json")


class ArrowStore:
    """Pictures in the rows of a table.

    Args:
        rows: A ``datasets.Dataset`` whose pictures aren't decoded.
        column: Which column.
        where: The dataset's folder; a picture's file must lie in it.
    """

    def __init__(self, rows: Any, column: str, where: Path) -> None:
        self._rows = rows
        self._column = column
        self._where = where

    def read(self, name: str) -> bytes:
        """The content of a picture's file; ``name`` ends in the row's number.

        Raises:
            DatasetError: if the row has no picture, or its file is gone.
        """
        value = self._rows[int(name.rpartition("#")[2])][self._column]
        content = value.get("bytes") if isinstance(value, dict) else None
        if content:
            return bytes(content)
        path = value.get("path") if isinstance(value, dict) else None
        if not path:
            raise DatasetError(f"{self._where}: row {name} has no picture in {self._column!r}")
        try:
            if not Path(path).resolve().is_relative_to(self._where.resolve()):
                raise DatasetError(f"{path}: a picture outside of {self._where}")
            return read_regular(Path(path))
        except UNREADABLE as error:
            raise DatasetError(f"{path}: can't be read ({error})") from None

    def open(self, name: str) -> Image.Image:
        """The picture, decoded.

        Raises:
            DatasetError: as :meth:`read`, or if it can't be decoded.
        """
        return decode(self.read(name), f"{self._where}: {name}")


def is_huggingface(path: Path) -> bool:
    """Whether a folder looks like one that ``datasets`` wrote or reads."""
    return path.is_dir() and (
        any((path / name).is_file() for name in SAVED)
        or next(_parquet(path), None) is not None
        or next(path.rglob("metadata.jsonl"), None) is not None
        or next(path.rglob("metadata.csv"), None) is not None
    )


def read_huggingface(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A split of a Hugging Face dataset on the disk.

    Args:
        path: A folder that ``save_to_disk`` wrote, that holds parquet files, or an imagefolder
            with ``metadata.jsonl`` or ``metadata.csv``.
        split: Its split; a dataset with a single one is taken as it is.
        images: None may be named: such a dataset holds its pictures itself.

    Raises:
        BackendUnavailableError: if the library isn't installed.
        DatasetError: if the folder can't be read, has neither pictures nor captions, or ``images``
            are named.
    """
    _check_no_pictures(images, path)
    try:
        import datasets
    except ImportError:
        raise BackendUnavailableError(
            f"{path}: a Hugging Face dataset; to read it install the library with: "
            "pip install 'hat-export[datasets]'"
        ) from None
    rows = _split(_load(path, datasets), split, path)
    column = next((name for name in IMAGE_COLUMNS if name in rows.column_names), None)
    if column is None:
        raise DatasetError(
            f"{path}: no column of pictures; expected {', '.join(IMAGE_COLUMNS)}, there are: "
            f"{', '.join(rows.column_names)}"
        )
    try:
        rows = rows.cast_column(column, datasets.Image(decode=False))
        entries = tuple(_entries(rows, column, path))
    except DatasetError:
        raise
    except Exception as error:  # as in _load; rows are read here
        raise _unreadable(path, error) from None
    if not entries:
        raise DatasetError(f"{path}: no row in it")
    return CaptionDataset(f"{path.resolve().name}/{split}", entries, ArrowStore(rows, column, path))


def _entries(rows: Any, column: str, path: Path) -> Iterator[CaptionedImage]:
    """Rows with the same picture file belong together; a picture without a file stands alone."""
    texts = rows.remove_columns([column])
    files = [value.get("path") if isinstance(value, dict) else None for value in rows[column]]
    grouped: dict[str, tuple[str, list[str]]] = {}
    for number, (row, file) in enumerate(zip(texts, files, strict=True)):
        shown = f"{Path(file).name if file else 'row'}#{number}"
        _, captions = grouped.setdefault(file or shown, (shown, []))
        captions += captions_of(row, f"{path}: row {number}")
    for name, captions in grouped.values():
        yield CaptionedImage(name, tuple(captions), {})


def _load(path: Path, datasets: Any) -> Any:
    try:
        if any((path / name).is_file() for name in SAVED):
            return datasets.load_from_disk(str(path))
        parquet = sorted(_parquet(path))
        if parquet:
            splits: dict[str, list[str]] = {}
            for file in parquet:
                # Named as the hub names them: test-00000-of-00001.parquet, or data/test/0.parquet.
                name = file.stem.split("-")[0]
                name = file.parent.name if name.isdecimal() else name
                splits.setdefault(name, []).append(str(file))
            return datasets.load_dataset("parquet", data_files=splits)
        for metadata in path.rglob("metadata.jsonl"):
            _check_lines(metadata)
        return datasets.load_dataset("imagefolder", data_dir=str(path))
    except DatasetError:
        raise
    except Exception as error:  # the library raises whatever its parts raise
        raise _unreadable(path, error) from None


def _check_lines(path: Path) -> None:
    """Refuse lines that are no JSON before the library sees them.

    Its own parser, in C++, overflows the machine's stack on deep nesting, which ends the process.

    Raises:
        DatasetError: naming the line, or if it isn't a file.
    """
    if not path.is_file():  # a pipe would never end
        raise DatasetError(f"{path}: not a regular file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                json_line(line, f"{path}: line {number}")


def _unreadable(path: Path, error: Exception) -> DatasetError:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return DatasetError(f"{path}: not a readable Hugging Face dataset ({line})")


def _split(loaded: Any, split: str, path: Path) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    if split in loaded:
        return loaded[split]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise DatasetError(f"{path}: no split {split!r}; it has: {', '.join(sorted(loaded))}")


def _parquet(path: Path) -> Iterator[Path]:
    return path.rglob("*.parquet")


def _check_no_pictures(images: Sequence[Path], path: Path) -> None:
    """Refuse ``--images`` beside a dataset that holds its pictures itself.

    Raises:
        DatasetError: naming the first of them.
    """
    if images:
        raise DatasetError(
            f"{images[0]}: {path} is a Hugging Face dataset and holds its pictures itself; leave "
            "--images out"
        )
