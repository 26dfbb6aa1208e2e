"""Karpathy's JSON, in which Flickr30K and COCO are evaluated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hat_export.data.dataset import CaptionDataset, CaptionedImage, ImageStore
from hat_export.errors import DatasetError

#: Archives of pictures that are looked for beside a JSON.
ZIPS = ("images*.zip", "flickr30k*.zip", "train2014.zip", "val2014.zip")


def read_karpathy(path: Path, split: str, images: Sequence[Path] = ()) -> CaptionDataset:
    """A split of a Karpathy-format dataset (``dataset_flickr30k.json``, ``dataset_coco.json``).

    Args:
        path: The JSON, or a folder that holds exactly one ``dataset*.json``.
        split: Which entries: those whose ``split`` field says so.
        images: Folders or zips; default: everything usable beside the JSON
            (``images*.zip``, ``flickr30k*.zip``, ``val2014.zip``, ``train2014.zip``, else
            ``images/``, else the folder itself and those in it).

    Raises:
        DatasetError: naming the file and what is missing in it.
    """
    path = _find_json(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such dataset") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not a readable JSON file ({error})") from None
    listed = content.get("images") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise DatasetError(f"{path}: no list 'images'; expected Karpathy's format")
    entries = tuple(
        _entry(item, f"{path}: image {index}")
        for index, item in enumerate(listed)
        if isinstance(item, dict) and item.get("split") == split
    )
    if not entries:
        splits = sorted({str(item.get("split"))[:40] for item in listed if isinstance(item, dict)})
        raise DatasetError(f"{path}: no image of split {split!r}; it has: {', '.join(splits)}")
    stated = content.get("dataset")
    name = stated if isinstance(stated, str) and stated else path.stem.removeprefix("dataset_")
    return CaptionDataset(f"{name}/{split}", entries, ImageStore(images or _beside(path)))


def _find_json(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = sorted(path.glob("dataset*.json"))
    if len(found) != 1:
        raise DatasetError(
            f"{path}: expected one dataset*.json in this folder, found {len(found)}; name the file"
        )
    return found[0]


def _beside(path: Path) -> list[Path]:
    folder = path.parent
    zips = sorted(found for pattern in ZIPS for found in folder.glob(pattern))
    if zips:
        return zips
    return [folder / "images"] if (folder / "images").is_dir() else [folder]


def _entry(item: dict[str, Any], where: str) -> CaptionedImage:
    filename, sentences = item.get("filename"), item.get("sentences")
    if not isinstance(filename, str) or not isinstance(sentences, list) or not sentences:
        raise DatasetError(f"{where}: needs 'filename' and a non-empty list 'sentences'")
    texts = [text.get("raw") if isinstance(text, dict) else None for text in sentences]
    captions = tuple(text for text in texts if isinstance(text, str))
    if len(captions) != len(sentences):
        raise DatasetError(f"{where}: every sentence needs a string 'raw'")
    folder = item.get("filepath")
    if folder is not None and not isinstance(folder, str):
        raise DatasetError(f"{where}: 'filepath' is no text")
    labels = {key: value for key, value in item.items() if isinstance(value, str)}
    return CaptionedImage(f"{folder}/{filename}" if folder else filename, captions, labels)
