"""EmojiCap for training: drawings in memory, the trimmed vocabulary, the held-out split."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hat_export.data.dataset import CaptionDataset
from hat_export.data.preprocess import ImagePreprocessor
from hat_export.data.tokenizer import SPECIAL, CaptionTokenizer

#: Vendors whose drawings are under the Apache licence, so that a held-out split can be shipped.
HELD_OUT_VENDORS = ("noto", "noto-v1")
HELD_OUT_DRAWINGS = 1000
SINGLE_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-&()\"/"

#: Words in a label by which left and right matter, so that a drawing must not be mirrored.
SIDED = ("left", "right", "clock", "thirty", "arrow", "east", "west")


def hold_out(dataset: CaptionDataset) -> tuple[CaptionDataset, CaptionDataset]:
    """Split the training drawings into those to train on and a test of seen vendors.

    The test holds at most one drawing of a concept. Which ones is decided by SHA-256 of the file
    name, so that it depends on nothing but the names.

    Returns:
        ``(training, test_seen)``.
    """

    def order(name: str) -> str:
        return hashlib.sha256(f"test-seen/{name}".encode()).hexdigest()

    concepts: dict[str, str] = {}
    for entry in dataset.entries:
        if entry.labels["vendor"] not in HELD_OUT_VENDORS:
            continue
        best = concepts.get(entry.labels["concept"])
        if best is None or order(entry.name) < order(best):
            concepts[entry.labels["concept"]] = entry.name
    chosen = set(sorted(concepts.values(), key=order)[:HELD_OUT_DRAWINGS])
    kept = tuple(entry for entry in dataset.entries if entry.name not in chosen)
    held = tuple(entry for entry in dataset.entries if entry.name in chosen)
    return replace(dataset, entries=kept), replace(
        dataset, name=dataset.name.split("/")[0] + "/test_seen", entries=held
    )


def trimmed_vocabulary(full: Path, captions: Sequence[str], max_words: int) -> list[str]:
    """The word pieces of a BERT vocabulary that some captions use, plus single characters."""
    tokenizer = CaptionTokenizer.from_vocabulary(full, max_words)
    ids, _ = tokenizer.encode(captions)
    used = set(np.unique(ids).tolist())
    keep = {*SPECIAL, "[MASK]"}
    for character in SINGLE_CHARACTERS:
        keep |= {character, "##" + character}
    pieces = full.read_text(encoding="utf-8").splitlines()
    return [piece for index, piece in enumerate(pieces) if index in used or piece in keep]


@dataclass(frozen=True)
class TrainingSet:
    """Everything that the training loop draws batches from.

    Attributes:
        pixels: uint8 [drawings, 3, H, W].
        may_flip: bool [drawings].
        concept: int64 [drawings].
        members: Per concept, the drawings that show it.
        ids: int64 [captions, words].
        lengths: int64 [captions].
        first_caption: int64 [drawings + 1]; drawing ``i`` has captions ``first[i] .. first[i+1]``.
    """

    pixels: Tensor
    may_flip: Tensor
    concept: Tensor
    members: tuple[np.ndarray, ...]
    ids: Tensor
    lengths: Tensor
    first_caption: np.ndarray

    @classmethod
    def load(
        cls, dataset: CaptionDataset, preprocess: ImagePreprocessor, tokenizer: CaptionTokenizer
    ) -> TrainingSet:
        """Decode, resize and tokenize a whole split."""
        pixels = np.stack([preprocess.crop(image) for image in dataset.images()])
        names = sorted({entry.labels["concept"] for entry in dataset.entries})
        index = {name: number for number, name in enumerate(names)}
        concept = [index[entry.labels["concept"]] for entry in dataset.entries]
        groups: dict[int, list[int]] = defaultdict(list)
        for drawing, number in enumerate(concept):
            groups[number].append(drawing)
        ids, mask = tokenizer.encode(dataset.captions)
        counts = [len(entry.captions) for entry in dataset.entries]
        return cls(
            pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            may_flip=torch.tensor([_may_flip(entry.labels) for entry in dataset.entries]),
            concept=torch.tensor(concept),
            members=tuple(np.array(groups[number]) for number in range(len(names))),
            ids=torch.from_numpy(ids),
            lengths=torch.from_numpy(mask.sum(1)),
            first_caption=np.concatenate([[0], np.cumsum(counts)]),
        )


def _may_flip(labels: dict[str, str]) -> bool:
    sided = any(word in labels["label"] for word in SIDED)
    return labels["group"] not in ("symbols", "flags") and not sided
