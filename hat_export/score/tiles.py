"""The one loop over blocks of images x captions: how large blocks are, and in what order they come.

Whoever scores more than a handful of pairs iterates over a :class:`Tiling`. It says which images
and which captions come next, when the block that stays has to be got ready (:attr:`Tile.opens`),
when it is finished and can be saved (:attr:`Tile.closes`), how far the whole is
(:attr:`Tile.done`), and where an interrupted run goes on (``start``). What a block is made of and
where its scores go is the caller's: nothing is called from here.

The native kernel gives a pair the same score in every block. What else is made of a block, such as
captions folded by one matrix product, rounds by the block's size: so sizes are part of a result's
last bits and stand here, not with the callers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int64

#: Captions that are prepared and scored together. At official size (32 words, d = 768) the three
#: levels take at most 3 x 6.3 MB at full width and 12.6 MB folded.
CAPTIONS_PER_BLOCK = 64

#: Memory that the word-region products of one tile may take where a formula forms them, in bytes.
PRODUCT_BYTES = 32 << 20

#: Memory that a block of images, decoded to float32 at one level, may take, in bytes, where a
#: single image isn't larger. While it is decoded its encoded form is held besides: half as much for
#: float16 and bfloat16, a quarter for int8, nothing for float32.
DECODED_BYTES = 32 << 20

#: Memory of a block of captions' words and of a block of images' regions, in bytes, where both are
#: streamed from files.
STREAMED_CAPTION_BYTES = 128 << 20
STREAMED_IMAGE_BYTES = 64 << 20


@dataclass(frozen=True)
class Tile:
    """Some images with some captions; travels to other processes.

    Attributes:
        images: Their positions.
        captions: Their places in the order of scoring.
        columns: Their positions, to index a matrix by.
        opens: Whether it is the first with its outer block, which stays for the tiles after it.
        closes: Whether it is the last with its outer block.
        done: Pairs that are scored with it, those before ``start`` counted.
    """

    images: range
    captions: range
    columns: slice | Int64[np.ndarray, " captions"]
    opens: bool
    closes: bool
    done: int

    @property
    def rows(self) -> slice:
        """The images, to index a matrix by."""
        return slice(self.images.start, self.images.stop)


@dataclass(frozen=True)
class Tiling:
    """How a matrix of images x captions is cut; iterates over its tiles.

    Attributes:
        images: Number of images.
        captions: Number of captions.
        caption_block: Captions per block.
        image_block: Images per block, beside a block of captions (places in the order of scoring).
        outer: What stays while the other changes.
        order: Positions of the captions in the order of scoring; None: as they come.
        start: First caption that isn't scored yet, where captions are outer; else 0.
    """

    images: int
    captions: int
    caption_block: int
    image_block: Callable[[range], int]
    outer: Literal["images", "captions"] = "captions"
    order: Int64[np.ndarray, " captions"] | None = None
    start: int = 0

    @property
    def pairs(self) -> int:
        """All of them."""
        return self.images * self.captions

    def caption_blocks(self) -> Iterator[range]:
        """Places of the captions, block by block."""
        return blocks(self.start, self.captions, self.caption_block)

    def __iter__(self) -> Iterator[Tile]:
        """The tiles in order."""
        if self.outer == "captions":
            for captions in self.caption_blocks():
                for images in blocks(0, self.images, self.image_block(captions)):
                    done = captions.start * self.images + len(captions) * images.stop
                    yield self._tile(images, captions, images, self.images, done)
        else:
            for images in blocks(0, self.images, self.image_block(range(self.captions))):
                for captions in self.caption_blocks():
                    done = images.start * self.captions + len(images) * captions.stop
                    yield self._tile(images, captions, captions, self.captions, done)

    def _tile(self, images: range, captions: range, inner: range, last: int, done: int) -> Tile:
        places = slice(captions.start, captions.stop)
        columns = places if self.order is None else self.order[places]
        return Tile(images, captions, columns, inner.start == 0, inner.stop == last, done)


def blocks(start: int, stop: int, count: int) -> Iterator[range]:
    """Consecutive ranges of at most ``count`` from ``start`` to ``stop``."""
    for first in range(start, stop, count):
        yield range(first, min(first + count, stop))


def at_most(memory: int, item: int) -> int:
    """How many items of so many bytes take at most so much memory, but at least one."""
    return max(1, memory // max(1, item))


def order_by_length(lengths: Int64[np.ndarray, " captions"]) -> Int64[np.ndarray, " captions"]:
    """The order in which captions of like length stand together, so that padding is short."""
    return np.argsort(lengths, kind="stable")


def feature_tiles(images: int, regions: int, lengths: Int64[np.ndarray, " captions"]) -> Tiling:
    """For a formula that forms all products of a tile; captions of like length stand together.

    Args:
        images: Number of images.
        regions: Regions of the largest level.
        lengths: True lengths of all captions, in words.
    """
    order = order_by_length(lengths)

    def image_block(captions: range) -> int:
        words = int(lengths[order[captions.stop - 1]]) if captions else 1
        return at_most(PRODUCT_BYTES, 4 * regions * words * max(1, len(captions)))

    return Tiling(images, len(lengths), CAPTIONS_PER_BLOCK, image_block, order=order)


def indexed_tiles(images: int, captions: int, image_bytes: int) -> Tiling:
    """For images of an index, decoded one level at a time.

    Args:
        images: Number of images.
        captions: Number of captions.
        image_bytes: Of one image at its largest level, as float32.
    """
    count = at_most(DECODED_BYTES, image_bytes)
    return Tiling(images, captions, CAPTIONS_PER_BLOCK, lambda captions: count)


def encoded_tiles(images: int, order: Int64[np.ndarray, " captions"], batch: int) -> Tiling:
    """For images that are encoded batch by batch, while all captions are held in batches.

    Args:
        images: Number of images.
        order: Positions of the captions, batch after batch.
        batch: Images per block, and captions.
    """
    return Tiling(images, len(order), batch, lambda captions: batch, "images", order)


def streamed_tiles(
    images: int, captions: int, sizes: tuple[int, int], parts: int = 1, start: int = 0
) -> Tiling:
    """For features that are streamed from files.

    Args:
        images: Number of images.
        captions: Number of captions.
        sizes: Bytes of an image and of a caption, at all levels.
        parts: Into how many blocks at least the images are cut, so that there is work for several.
        start: Captions that are scored already.
    """
    image_bytes, caption_bytes = sizes
    count = min(at_most(STREAMED_IMAGE_BYTES, image_bytes), max(1, -(-images // parts)))
    width = at_most(STREAMED_CAPTION_BYTES, caption_bytes)
    return Tiling(images, captions, width, lambda captions: count, start=start)
