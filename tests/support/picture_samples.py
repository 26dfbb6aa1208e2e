"""Small random pictures for the tests of indexing and search."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image


def pictures(count: int, seed: int = 0) -> dict[str, bytes]:
    """Encoded pictures of a few coloured blocks by name; PNG and JPEG in turn."""
    random = np.random.default_rng(seed)
    made = {}
    for number in range(count):
        blocks = random.integers(0, 256, (5, 4, 3), np.uint8)
        file = io.BytesIO()
        kind = ("png", "jpeg")[number % 2]
        picture = Image.fromarray(blocks).resize((80 + number % 7, 70), Image.Resampling.BICUBIC)
        picture.save(file, kind)
        made[f"{number:04d}.{kind}"] = file.getvalue()
    return made


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def write_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def write_tar(path: Path, content: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path
