"""What the shapes of a HAT checkpoint tell about its architecture, and what they can't."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from hat_export.errors import CheckpointError, SpecError
from hat_export.model.keys import PATCH_WEIGHT, Shape
from hat_export.spec import OFFICIAL, ModelSpec

#: Fields that change results but leave no trace in any shape. A Swin has no position table, so
#: that the image size doesn't either.
UNKNOWABLE = (
    "image_size",
    "resize_size",
    "max_words",
    "text_heads",
    "text_level_layers",
    "direction",
    "softmax_lambda",
)

_BIAS_TABLE = "vit_model.layers.{}.blocks.0.attn.relative_position_bias_table"
_BLOCK = re.compile(r"vit_model\.layers\.([0-9]{1,3})\.blocks\.([0-9]{1,3})\.norm1\.weight")
_TEXT_LAYER = re.compile(r"text_transformer\.encoder\.layer\.([0-9]{1,3})\.output\.dense\.weight")


def inferred_fields(shapes: Mapping[str, Shape], source: str) -> dict[str, Any]:
    """The spec fields that shapes determine.

    Args:
        shapes: Shapes by own names (see :mod:`hat_export.model.keys`).
        source: What to call the checkpoint in an error message.

    Returns:
        Field names of :class:`~hat_export.spec.ModelSpec` and their values.

    Raises:
        CheckpointError: if a tensor that says one of them is missing or has an odd shape.
    """

    def shape(name: str, dims: int) -> Shape:
        found = shapes.get(name)
        if found is None or len(found) != dims or min(found) < 1:
            what = "missing" if found is None else f"of shape {list(found)}"
            raise CheckpointError(
                f"{source}: {name} is {what}, so it can't be a HAT model of a known layout; "
                f"expected a tensor of {dims} dimensions"
            )
        return found

    patch = shape(PATCH_WEIGHT, 4)
    blocks = [match for match in map(_BLOCK.fullmatch, shapes) if match]
    depths = [0, 0, 0, 0]
    for match in blocks:
        if int(match[1]) < 4:
            depths[int(match[1])] += 1
    tables = [shape(_BIAS_TABLE.format(stage), 2) for stage in range(4)]
    words = shape("text_transformer.embeddings.word_embeddings.weight", 2)
    return {
        "patch_size": patch[2],
        # A window is clipped to the feature map in the last stages, never in the first.
        "window_size": (math.isqrt(tables[0][0]) + 1) // 2,
        "embed_dim": patch[0],
        "depths": tuple(depths),
        "image_heads": tuple(table[1] for table in tables),
        "vocab_size": words[0],
        "text_positions": shape("text_transformer.embeddings.position_embeddings.weight", 2)[0],
        "text_dim": words[1],
        "text_layers": sum(_TEXT_LAYER.fullmatch(name) is not None for name in shapes),
        "text_hidden": shape("text_transformer.encoder.layer.0.intermediate.dense.weight", 2)[0],
        "dim": shape("cross_modal_image_transform.weight", 2)[0],
    }


def infer_spec(shapes: Mapping[str, Shape], source: str) -> ModelSpec:
    """The official spec if the shapes are those of the official model.

    Args:
        shapes: Shapes by own names.
        source: What to call the checkpoint in an error message.

    Raises:
        SpecError: if the model has another size, saying what is known of it and what is not.
        CheckpointError: as in :func:`inferred_fields`.
    """
    known = inferred_fields(shapes, source)
    if all(getattr(OFFICIAL, field) == value for field, value in known.items()):
        return OFFICIAL
    told = ", ".join(f"{field} {value}" for field, value in known.items())
    raise SpecError(
        f"{source}: not the official model size ({told}), and tensors don't tell "
        f"{', '.join(UNKNOWABLE)}; give all of these with --spec spec.json"
    )
