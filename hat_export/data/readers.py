"""Every form of a dataset: what it is recognised by, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hat_export.data.dataset import CaptionDataset
from hat_export.data.huggingface import SAVED, is_huggingface, read_huggingface
from hat_export.data.karpathy import read_karpathy
from hat_export.data.tables import read_csv, read_jsonl
from hat_export.errors import DatasetError

#: A dataset's path, the name of a split, folders or zips with the pictures -> that split.
Read = Callable[[Path, str, Sequence[Path]], CaptionDataset]


@dataclass(frozen=True)
class Form:
    """A form in which people have a dataset on the disk.

    Attributes:
        name: What messages call it.
        fits: Whether a path is of this form; looks at names, reads no content.
        read: Reads a split of it.
    """

    name: str
    fits: Callable[[Path], bool]
    read: Read


def _file(*endings: str) -> Callable[[Path], bool]:
    return lambda path: not path.is_dir() and path.suffix.lower() in endings


def _is_karpathy_folder(path: Path) -> bool:
    # Hugging Face's own dataset_info.json and dataset_dict.json are no Karpathy files.
    return path.is_dir() and any(found.name not in SAVED for found in path.glob("dataset*.json"))


#: The first that fits a path reads it.
FORMS = (
    Form("Karpathy's JSON (.json)", _file(".json"), read_karpathy),
    Form("JSON lines (.jsonl, .ndjson)", _file(".jsonl", ".ndjson"), read_jsonl),
    Form("a table (.csv, .tsv, .txt)", _file(".csv", ".tsv", ".txt"), read_csv),
    Form("a folder with Karpathy's dataset*.json", _is_karpathy_folder, read_karpathy),
    Form("a Hugging Face dataset's folder", is_huggingface, read_huggingface),
    # Any other folder: its message says what is missing.
    Form("a folder", Path.is_dir, read_karpathy),
)


def read_dataset(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A split of a dataset in any of the :data:`FORMS`.

    Args:
        path: Its file or folder.
        split: Name of the split.
        images: Folders or zips with the pictures; default: beside the file.

    Raises:
        DatasetError: naming the file and what is wrong with it.
        BackendUnavailableError: if a library for it isn't installed.
    """
    form = next((form for form in FORMS if form.fits(path)), None)
    if form is None:
        known = ", ".join(form.name for form in FORMS[:-1])
        raise DatasetError(f"{path}: not a form of dataset that is known; those are: {known}")
    return form.read(path, split, images)
