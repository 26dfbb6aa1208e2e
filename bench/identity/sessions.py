"""Hashes of features and scores, by the public Python interface of the program that is recorded.

Started by its Python, in the folder of the record, with the number of threads and bundles to open.
Prints JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import hat_export

#: As in ``recording.py``, whose environment need not be this one's.
BATCHES = (1, 2, 3, 17)


def main() -> None:
    """Open the checkpoint and every bundle and print what they give."""
    threads, *names = sys.argv[1:]
    found: dict[str, Any] = {}
    for name in names:
        try:
            with opened(name, int(threads)) as session:
                found[name] = results(session)
        except hat_export.errors.HatError as error:
            found[name] = {"refused": str(error)}
    print(json.dumps(found))


def opened(name: str, threads: int) -> Any:
    """A session on a checkpoint or a bundle, rounded as on a GPU where a CPU has no kernels."""
    if not (Path(name) / "manifest.json").exists():
        return hat_export.load(name, threads=threads)
    try:
        return hat_export.open_bundle(name, threads=threads)
    except hat_export.errors.BackendUnavailableError:
        return hat_export.open_bundle(name, backend="emulation", threads=threads)


def results(session: Any) -> dict[str, str]:
    """Hashes by backend, batch and kind: of made-up inputs, and of pictures and captions."""
    captions = Path("captions.txt").read_text().splitlines()
    pictures = sorted(Path("pictures").iterdir())
    found = {"backend": session.backend}
    with np.load("inputs.npz") as inputs:
        for batch in BATCHES:
            pixels, ids, mask = (
                inputs[f"{name}{batch}"] for name in ("pixel_values", "input_ids", "attention_mask")
            )
            images, texts = session.encode_images(pixels), session.encode_texts(ids, mask)
            found |= hashes(f"inputs {batch}", images, texts, session.score(images, texts))
            images = session.encode_images(pictures[:batch])
            texts = session.encode_texts(captions[:batch])
            found |= hashes(f"files {batch}", images, texts, session.score(images, texts))
    return found


def hashes(name: str, images: Any, texts: Any, scores: np.ndarray) -> dict[str, str]:
    """SHA-256 of image features, text features and scores."""
    arrays = {"images": images.levels, "texts": texts.levels, "scores": (scores,)}
    return {f"{name}, {kind}": digest(levels) for kind, levels in arrays.items()}


def digest(arrays: tuple[np.ndarray, ...]) -> str:
    """SHA-256 of types, shapes and contents."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
