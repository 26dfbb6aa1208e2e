"""Image preprocessing without torch, bit-identical to the official torchvision transform."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from hat_export.errors import InputError
from hat_export.spec import ModelSpec

#: A picture, the path of one, or an encoded one (the content of a JPEG, PNG ... file).
ImageLike = Image.Image | str | Path | bytes

#: A picture of one pixel's width may be resized to anything: pixels that are never exceeded.
MAX_RESIZED_PIXELS = 64 << 20


@dataclass(frozen=True)
class ImagePreprocessor:
    """Resize the shorter side, centre crop, scale to [0, 1], normalise.

    Attributes:
        resize_size: Shorter side after resizing, in pixels.
        image_size: Side of the crop, in pixels.
        mean: Per-channel mean.
        std: Per-channel divisor.
    """

    resize_size: int
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def from_spec(cls, spec: ModelSpec) -> ImagePreprocessor:
        """The preprocessing that a model was trained with."""
        return cls(spec.resize_size, spec.image_size, spec.mean, spec.std)

    def crop(self, image: ImageLike) -> UInt8[np.ndarray, "height width 3"]:
        """The resized centre crop before normalisation.

        Args:
            image: A PIL image of any mode and size, a path to one, or an encoded one.

        Raises:
            InputError: if the path or the bytes hold no readable image.
        """
        picture = open_image(image)
        width, height = picture.size
        # torchvision's Resize: the longer side is truncated, not rounded.
        short, long = min(width, height), max(width, height)
        scaled = int(self.resize_size * long / short)
        size = (self.resize_size, scaled) if width <= height else (scaled, self.resize_size)
        if scaled * self.resize_size > MAX_RESIZED_PIXELS:
            raise InputError(
                f"an image is {width} x {height} pixels; resized to {size[0]} x {size[1]} it would "
                "take too much memory: crop it first"
            )
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling.BILINEAR)
        # torchvision's CenterCrop: Python's round, half to even.
        left = round((picture.size[0] - self.image_size) / 2.0)
        top = round((picture.size[1] - self.image_size) / 2.0)
        box = (left, top, left + self.image_size, top + self.image_size)
        return np.asarray(picture.crop(box), np.uint8)

    def __call__(self, images: Sequence[ImageLike]) -> Float32[np.ndarray, "images 3 height width"]:
        """Pixel values ready for the image encoder.

        Args:
            images: PIL images, paths, or encoded images.

        Returns:
            float32 [images, 3, image_size, image_size].
        """
        side = self.image_size
        pixels = np.empty((len(images), 3, side, side), np.float32)
        mean = np.asarray(self.mean, np.float32)[:, None, None]
        std = np.asarray(self.std, np.float32)[:, None, None]
        for index, image in enumerate(images):
            scaled = self.crop(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
            pixels[index] = (scaled - mean) / std
        return pixels

    def to_json(self) -> dict[str, Any]:
        """Settings as stored in a bundle's manifest."""
        return {
            "resize_size": self.resize_size,
            "image_size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": "bilinear, antialiased (PIL)",
            "crop": "centre, offset rounded half to even",
        }


def open_image(image: ImageLike) -> Image.Image:
    """A picture in RGB, decoded.

    Raises:
        InputError: if it is of another kind, or can't be decoded.
    """
    if isinstance(image, Image.Image):
        return _to_rgb(image)
    if not isinstance(image, (str, Path, bytes)):
        kind = type(image).__name__
        raise InputError(f"an image is {kind}; expected a PIL image, a path or encoded bytes")
    name = f"{len(image)} bytes" if isinstance(image, bytes) else str(image)
    return _to_rgb(decode_image(image, name))


def decode_image(image: str | Path | bytes, name: str) -> Image.Image:
    """A picture in its own mode, decoded.

    Args:
        image: A path, or the content of a file.
        name: For messages.

    Raises:
        InputError: if it can't be decoded, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # Of large pictures that are below the limit, and of odd metadata, which isn't used.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
                picture.load()  # before the file is closed: the picture may be returned as it is
                return picture
    except FileNotFoundError:
        raise InputError(f"{name}: no such image") from None
    except MemoryError:
        raise InputError(f"{name}: decoding it takes more memory than there is") from None
    except Exception as error:  # decoders of damaged files raise whatever their parts raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{name}: not a readable image ({reason})") from None


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB":
        return picture
    try:
        return picture.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:  # a damaged palette shows here
        raise InputError(f"an image of mode {picture.mode} can't be used ({error})") from None
