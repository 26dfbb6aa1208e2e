"""What is measured: an encoder at a size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hat_export.errors import InputError
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.spec import ModelSpec

#: Inputs of each encoder, in the order of its PyTorch module.
INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Point:
    """An encoder at a size.

    Attributes:
        encoder: ``image`` or ``text``.
        batch: Images or captions in a call.
        words: Width of the captions in word pieces; 0 for images.
    """

    encoder: str
    batch: int
    words: int = 0

    @classmethod
    def parse(cls, text: str) -> Point:
        """``image:8`` or ``text:32x16``; InputError on anything else."""
        encoder, _, size = text.partition(":")
        numbers = size.split("x")
        expected = {"image": 1, "text": 2}.get(encoder)
        if len(numbers) != expected or not all(n.isdecimal() and int(n) > 0 for n in numbers):
            raise InputError(f"point {text!r}: expected image:IMAGES or text:CAPTIONSxWORDS")
        return cls(encoder, *map(int, numbers))

    def __str__(self) -> str:
        size = f"{self.batch}x{self.words}" if self.encoder == "text" else str(self.batch)
        return f"{self.encoder}:{size}"

    def inputs(self, spec: ModelSpec) -> dict[str, np.ndarray]:
        """Fixed inputs by name; captions are all of full width, as batches of like length are."""
        if self.encoder == "image":
            return {"pixel_values": noise_pixels(spec, self.batch, seed=self.batch)}
        if self.words > spec.max_words:
            raise InputError(f"point {self}: {spec.name} takes at most {spec.max_words} words")
        ids, _ = noise_captions(spec, self.batch, self.words, seed=self.batch)
        # Ids of padding are 0; here every place is a word.
        return {"input_ids": np.maximum(ids, 1), "attention_mask": np.ones_like(ids)}
