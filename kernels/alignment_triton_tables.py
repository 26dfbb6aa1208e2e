"""Sizes of the tiles of the Triton alignment kernel: one default, and explicit exceptions to it.

Nothing is searched for at run time: a score must not depend on which of several tile sizes won a
race on a busy machine. ``Tile.measured`` names the device on which an entry was found to be the
fastest; None means that it was chosen by registers, shared memory and spills alone, without a
GPU. So far no entry has been measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hat_export.errors import InputError

DataType = Literal["fp16", "bf16", "fp32"]

#: Columns that a caption may take in a tile, by which captions are grouped: tl.dot wants at least
#: 16, and a short caption in a wide slot is work for nothing.
SLOTS = (16, 32, 64)


@dataclass(frozen=True)
class Tile:
    """How the work is cut.

    Attributes:
        captions: Captions of a program: 1 or 2.
        regions: Regions of a tile, a power of two; the kernel computes its dot products once if
            an image has no more than that, else twice.
        width: Elements of a dot product in one step, a power of two.
        warps: Warps of a program.
        stages: Steps of the dot product that are in flight.
        measured: The device on which the entry was found to be the fastest, or None.
    """

    captions: int
    regions: int
    width: int
    warps: int
    stages: int
    measured: str | None = None


#: (compute capability, width, regions, slot) -> tile for fp16 and bf16, where something else than
#: the default suits the device. Level 2 of the full-size model: its 196 regions fit into one tile,
#: so that nothing is computed twice; with two captions of 32 words that takes 246 to 255 registers
#: a thread, and on sm_120 some of them spill.
TILES: dict[tuple[int, int, int, int], Tile] = {
    (80, 512, 196, 16): Tile(2, 256, 32, 8, 3),
    (80, 512, 196, 32): Tile(2, 256, 32, 8, 3),
    (86, 512, 196, 16): Tile(2, 256, 32, 8, 3),
    (86, 512, 196, 32): Tile(1, 256, 32, 8, 3),
    (89, 512, 196, 16): Tile(2, 256, 32, 8, 3),
    (89, 512, 196, 32): Tile(1, 256, 32, 8, 3),
    (90, 512, 196, 16): Tile(2, 256, 32, 8, 3),
    (90, 512, 196, 32): Tile(2, 256, 32, 8, 3),
    (120, 512, 196, 16): Tile(2, 256, 32, 8, 3),
    (120, 512, 196, 32): Tile(1, 256, 32, 8, 3),
}


def slot_for(length: int) -> int:
    """The narrowest slot for a caption.

    Raises:
        InputError: The caption is longer than the widest slot.
    """
    for slot in SLOTS:
        if length <= slot:
            return slot
    raise InputError(
        f"a caption of {length} words: the GPU kernel takes at most {SLOTS[-1]}; cut the caption, "
        "or score it on the CPU"
    )


def tile_for(capability: int, data_type: DataType, width: int, regions: int, slot: int) -> Tile:
    """The tile for a device and a level.

    Args:
        capability: Compute capability, 10 * major + minor.
        data_type: Type of regions and words.
        width: Length of a dot product.
        regions: Regions of an image.
        slot: One of :data:`SLOTS`.
    """
    if data_type == "fp32":
        # Three TF32 products for one, of operands twice as large: less fits into the registers.
        if slot == 64:
            return Tile(1, 32, 32, 4, 2)
        return Tile(1, 64, 32, 4, 2) if regions <= 64 else Tile(1, 128, 32, 8, 2)
    listed = TILES.get((capability, width, regions, slot))
    if listed is not None:
        return listed
    if slot == 64:
        return Tile(1, 64, 32, 8, 3)
    if regions <= 64:
        return Tile(2, 64, 64, 4, 3)
    return Tile(2, 128, 32, 8, 3)
