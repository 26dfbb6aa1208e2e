"""Whatever dataset people have on disk, recognised by its path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hat_export.data.dataset import CaptionDataset, read_karpathy
from hat_export.data.huggingface import SAVED, check_no_pictures, is_huggingface, read_huggingface
from hat_export.data.tables import read_csv, read_jsonl
from hat_export.errors import DatasetError

#: Ending of a file -> what reads it.
READERS = {
    ".json": read_karpathy,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_csv,
}


def read_dataset(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A split of a dataset.

    Args:
        path: Karpathy's JSON or a folder with one ``dataset*.json``; a JSONL or CSV with columns
            for picture and captions; a Hugging Face dataset's folder.
        split: Name of the split.
        images: Folders or zips with the pictures; default: beside the file.

    Raises:
        DatasetError: naming the file and what is wrong with it.
        BackendUnavailableError: if a library for it isn't installed.
    """
    if path.is_dir():
        # Hugging Face's own dataset_info.json and dataset_dict.json are no Karpathy files.
        karpathy = {found.name for found in path.glob("dataset*.json")} - set(SAVED)
        if not karpathy and is_huggingface(path):
            check_no_pictures(images, path)
            return read_huggingface(path, split)
        return read_karpathy(path, split, images)
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DatasetError(
            f"{path}: a dataset ends in {', '.join(READERS)}, or is the folder of a Karpathy or "
            "Hugging Face dataset"
        )
    return reader(path, split, images)
