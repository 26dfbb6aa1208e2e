"""Names of a HAT checkpoint's tensors: the official layout and this package's own.

Pure functions on names and shapes. The own layout is that of timm 1.x and transformers inside
``vit_model`` and ``text_transformer``. The official one differs in this: it was made with an
older timm, which keeps a stage's patch merging (``layers.N.downsample``) with the stage *before*
it, where timm 1.x keeps it with the stage *after*. Both layouts use the same names for different
tensors, so the shapes decide: the reduction weight of the merging after stage ``s`` is [2C, 4C]
with ``C = embed_dim * 2**s``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hat_export.errors import CheckpointError

Shape = tuple[int, ...]

#: First components that a trainer or a wrapper adds (Lightning, DataParallel, torch.compile).
WRAPPERS = ("model.", "module.", "_orig_mod.")

#: What every name of a HAT model starts with once wrappers are stripped.
HEADS = ("vit_model.", "text_transformer.", "cross_modal_")

#: Last components of tensors that the model computes from its spec.
BUFFERS = ("relative_position_index", "attn_mask", "position_ids", "token_type_ids")

#: Learned tensors that no inference output depends on.
UNUSED = (
    "text_transformer.pooler.",
    "vit_model.norm_0.",
    "vit_model.head.",
    "vit_model.classifier.",
)

PATCH_WEIGHT = "vit_model.patch_embed.proj.weight"

_DOWNSAMPLE = re.compile(r"vit_model\.layers\.([0-9]{1,3})\.downsample\.(.+)")


@dataclass(frozen=True)
class Translation:
    """What each tensor of a file is.

    Attributes:
        own: Name in the file -> name in the state dict of :class:`hat_export.model.hat.HAT`.
            Names that belong to no HAT model are kept as they are.
        buffers: Names in the file of tensors that the model computes itself.
        unused: Names in the file of learned tensors that aren't used at inference.
    """

    own: dict[str, str]
    buffers: tuple[str, ...]
    unused: tuple[str, ...]


def strip_wrappers(name: str) -> str:
    """``name`` without the leading components of wrappers, repeated ones too."""
    start = 0
    while wrapper := next((part for part in WRAPPERS if name.startswith(part, start)), None):
        start += len(wrapper)
    return name[start:]


def to_own(shapes: Mapping[str, Shape]) -> Translation:
    """Translate the names of a checkpoint in either layout.

    Args:
        shapes: Shape of every tensor by its name in the file.

    Returns:
        The own name of every tensor that inference uses, and what was left out.

    Raises:
        CheckpointError: if two tensors of the file translate to the same name.
    """
    stripped = {name: strip_wrappers(name) for name in shapes}
    merged_stage = _merged_stages({stripped[name]: shape for name, shape in shapes.items()})
    own: dict[str, str] = {}
    origin: dict[str, str] = {}
    buffers: list[str] = []
    unused: list[str] = []
    for name, plain in stripped.items():
        if plain.rpartition(".")[2] in BUFFERS:
            buffers.append(name)
            continue
        if plain.startswith(UNUSED):
            unused.append(name)
            continue
        match = _DOWNSAMPLE.fullmatch(plain)
        if match and int(match[1]) in merged_stage:
            plain = f"vit_model.layers.{merged_stage[int(match[1])] + 1}.downsample.{match[2]}"
        if plain in origin:
            raise CheckpointError(f"{origin[plain]} and {name} are both the weight {plain}")
        origin[plain] = name
        own[name] = plain
    return Translation(own, tuple(buffers), tuple(unused))


def to_official(names: Iterable[str]) -> dict[str, str]:
    """Official name of every own name: the patch merging goes back to the stage before it."""
    official: dict[str, str] = {}
    for name in names:
        match = _DOWNSAMPLE.fullmatch(name)
        official[name] = (
            f"vit_model.layers.{int(match[1]) - 1}.downsample.{match[2]}" if match else name
        )
    return official


def _merged_stages(shapes: Mapping[str, Shape]) -> dict[int, int]:
    """For every ``layers.N.downsample``, the stage whose output it merges, from its shape.

    An N that fits neither layout is left out, so that its name is later reported as unexpected.
    """
    patch = shapes.get(PATCH_WEIGHT)
    if not patch or patch[0] < 1:
        return {}
    stages: dict[int, int] = {}
    for name, shape in shapes.items():
        match = _DOWNSAMPLE.fullmatch(name)
        if not match or match[2] != "reduction.weight" or len(shape) != 2:
            continue
        layer = int(match[1])
        for stage in (layer - 1, layer):
            if stage >= 0 and shape == (patch[0] << (stage + 1), patch[0] << (stage + 2)):
                stages[layer] = stage
    return stages
