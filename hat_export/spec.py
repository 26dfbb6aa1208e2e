"""The frozen description of a HAT architecture.

Everything that the checkpoint's tensors alone don't tell (attention heads of the text encoder,
which layers feed which level, lambda, preprocessing) lives here, so that a spec and a state dict
together determine the model's output.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hat_export.errors import SpecError

Direction = Literal["i2t", "t2i"]

#: Every alignment level, from fine to coarse: Swin stage (counted from 0) of level 1, 2, 3.
LEVEL_STAGES = (1, 2, 3)
LEVELS = len(LEVEL_STAGES)

#: Levels, counted from 1, of which an index keeps the normed stage output instead of the features:
#: at official size it is narrower there (256 and 512 against 768), but not at level 3 (1024).
REDUCED_LEVELS = (1, 2)

#: Parameter-name suffix of ``cross_modal_{image,text}_transform`` per level (official layout).
LEVEL_SUFFIXES = ("_1", "_2", "")

#: Order in which the official code adds the level scores; levels counted from 1.
LEVEL_ORDER = (3, 1, 2)

#: Constants of the score at every level: slope of the leaky ReLU, what is added to the norm of the
#: dot products, floor of the product of norms in the cosine.
LEAKY_SLOPE = 0.1
NORM_EPSILON = 1e-8
COSINE_FLOOR = 1e-8

#: Sizes far beyond any model, so that a stranger's spec can't ask for more than there is.
LARGEST = 1 << 20
LARGEST_IMAGE = 1 << 13
MOST_LAYERS = 1 << 10

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelSpec:
    """Architecture, preprocessing and score of one HAT model.

    Attributes:
        name: Preset or free name, shown in reports.
        image_size: Side of the square input image in pixels; a multiple of 32.
        resize_size: Shorter side after resizing, before the centre crop, in pixels.
        mean: Per-channel mean subtracted after scaling to [0, 1].
        std: Per-channel divisor.
        patch_size: Side of a Swin patch in pixels.
        window_size: Side of an attention window in tokens.
        embed_dim: Channels of Swin stage 0; stage ``s`` has ``embed_dim * 2**s``.
        depths: Swin blocks per stage.
        image_heads: Attention heads per Swin stage.
        vocab_size: Rows of the word embedding.
        max_words: Longest caption in word pieces, [CLS] and [SEP] counted.
        text_positions: Rows of the position embedding.
        text_dim: Width of the text encoder.
        text_layers: Transformer layers of the text encoder.
        text_heads: Attention heads per text layer.
        text_hidden: Width of the text encoder's MLP.
        text_level_layers: Text layer (counted from 0, embeddings not counted) of level 1, 2, 3.
        dim: Width of the shared feature space ``d``.
        direction: Which side asks in the alignment score.
        softmax_lambda: Inverse temperature of the attention softmax (lambda).
    """

    name: str = "hat-swin-base"
    image_size: int = 224
    resize_size: int = 256
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    patch_size: int = 4
    window_size: int = 7
    embed_dim: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    image_heads: tuple[int, ...] = (4, 8, 16, 32)
    vocab_size: int = 30522
    max_words: int = 32
    text_positions: int = 512
    text_dim: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_hidden: int = 3072
    text_level_layers: tuple[int, int, int] = (3, 9, 11)
    dim: int = 768
    direction: Direction = "i2t"
    softmax_lambda: float = 9.0

    def __post_init__(self) -> None:
        """Reject a spec that no model can be built from.

        Raises:
            SpecError: naming the field, its value and what it should be.
        """
        if len(self.depths) != 4 or len(self.image_heads) != 4:
            raise SpecError(
                f"spec {self.name!r}: depths and image_heads need 4 entries, one per Swin stage; "
                f"got {self.depths} and {self.image_heads}"
            )
        positive = (
            "image_size resize_size patch_size window_size embed_dim vocab_size max_words "
            "text_positions text_dim text_layers text_heads text_hidden dim"
        ).split()
        for field in positive:
            if getattr(self, field) < 1:
                raise SpecError(
                    f"spec {self.name!r}: {field} is {getattr(self, field)}; expected at least 1"
                )
            if getattr(self, field) > LARGEST:
                raise SpecError(
                    f"spec {self.name!r}: {field} is {getattr(self, field)}; expected at most "
                    f"{LARGEST}"
                )
        if max(*self.depths, self.text_layers) > MOST_LAYERS or self.image_size > LARGEST_IMAGE:
            raise SpecError(
                f"spec {self.name!r}: more than {MOST_LAYERS} layers, or images of more than "
                f"{LARGEST_IMAGE} pixels a side"
            )
        if min(self.depths) < 1 or min(self.image_heads) < 1:
            raise SpecError(f"spec {self.name!r}: depths and image_heads must be at least 1")
        if self.image_size % (8 * self.patch_size):
            raise SpecError(
                f"spec {self.name!r}: image_size {self.image_size} is not a multiple of "
                f"{8 * self.patch_size} (patch_size x 8, for three halvings)"
            )
        for stage, side in enumerate(self.stage_sides):
            if side % min(self.window_size, side):
                raise SpecError(
                    f"spec {self.name!r}: window_size {self.window_size} does not divide the "
                    f"{side} x {side} tokens of Swin stage {stage}; use image_size / 32"
                )
            if (self.embed_dim << stage) % self.image_heads[stage]:
                raise SpecError(
                    f"spec {self.name!r}: {self.image_heads[stage]} heads do not divide the "
                    f"{self.embed_dim << stage} channels of Swin stage {stage}"
                )
        if self.text_dim % self.text_heads:
            raise SpecError(
                f"spec {self.name!r}: text_heads {self.text_heads} does not divide "
                f"text_dim {self.text_dim}"
            )
        if len(self.text_level_layers) != LEVELS or not all(
            0 <= layer < self.text_layers for layer in self.text_level_layers
        ):
            raise SpecError(
                f"spec {self.name!r}: text_level_layers {self.text_level_layers} must be "
                f"{LEVELS} layers from 0 to {self.text_layers - 1}"
            )
        if self.resize_size < self.image_size:
            raise SpecError(
                f"spec {self.name!r}: resize_size {self.resize_size} is smaller than the "
                f"crop {self.image_size}"
            )
        if not 2 <= self.max_words <= self.text_positions:
            raise SpecError(
                f"spec {self.name!r}: max_words {self.max_words} must lie between 2 and "
                f"text_positions {self.text_positions}"
            )
        if self.direction not in ("i2t", "t2i"):
            raise SpecError(f"spec {self.name!r}: direction {self.direction!r} is not i2t or t2i")
        if not 0 < self.softmax_lambda < math.inf:
            raise SpecError(f"spec {self.name!r}: softmax_lambda must be above 0 and finite")
        channels = (*self.mean, *self.std)
        if (len(self.mean), len(self.std)) != (3, 3) or not all(map(math.isfinite, channels)):
            raise SpecError(f"spec {self.name!r}: mean and std need 3 finite numbers each")
        if min(self.std) <= 0:
            raise SpecError(f"spec {self.name!r}: std must be above 0")

    @property
    def stage_sides(self) -> tuple[int, int, int, int]:
        """Tokens along one side of the feature map, per Swin stage."""
        side = self.image_size // self.patch_size
        return (side, side // 2, side // 4, side // 8)

    @property
    def level_regions(self) -> tuple[int, int, int]:
        """Image regions per level: 784, 196, 49 at official size."""
        first, second, third = (self.stage_sides[stage] ** 2 for stage in LEVEL_STAGES)
        return (first, second, third)

    @property
    def level_widths(self) -> tuple[int, int, int]:
        """Channels of the normed stage output per level: 256, 512, 1024 at official size."""
        first, second, third = (self.embed_dim << stage for stage in LEVEL_STAGES)
        return (first, second, third)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain JSON values, in field order."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], source: str = "spec") -> ModelSpec:
        """Build a spec from JSON values, strictly.

        Args:
            values: Field names and values; every field must be known, missing ones keep the
                official default.
            source: What to call the origin in an error message.

        Raises:
            SpecError: on an unknown field or a value of the wrong type.
        """
        if not isinstance(values, Mapping):
            raise SpecError(f"{source}: expected a JSON object of spec fields")
        known = {field.name: getattr(OFFICIAL, field.name) for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise SpecError(
                f"{source}: unknown spec field {unknown[0]!r}; known fields: {', '.join(known)}"
            )
        converted: dict[str, Any] = {}
        for key, value in values.items():
            converted[key] = _convert(key, value, known[key], source)
        return replace(OFFICIAL, **converted)

    @classmethod
    def parse(cls, text: str, source: str = "spec") -> ModelSpec:
        """Build a spec from JSON text; errors as in :meth:`from_json`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SpecError(f"{source}: not valid JSON ({error})") from None
        return cls.from_json(values, source)


def _convert(key: str, value: Any, example: Any, source: str) -> Any:
    """``value`` in the type of ``example``, or a SpecError that says what was expected."""
    if isinstance(example, tuple):
        if not isinstance(value, (list, tuple)):
            raise SpecError(f"{source}: {key} is {value!r}; expected a list")
        return tuple(_convert(key, item, example[0], source) for item in value)
    if isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise SpecError(f"{source}: {key} is too large a number") from None
    if type(value) is not type(example):
        raise SpecError(f"{source}: {key} is {value!r}; expected {type(example).__name__}")
    return value


OFFICIAL = ModelSpec()

#: The tiny model shipped in ``demo/``: real, trained, 64 pixels, fast on any CPU.
TINY = ModelSpec(
    name="hat-tiny-emojicap",
    image_size=64,
    resize_size=64,
    window_size=2,
    embed_dim=32,
    depths=(2, 2, 2, 2),
    image_heads=(2, 4, 8, 16),
    vocab_size=4778,
    text_positions=32,
    text_dim=128,
    text_layers=4,
    text_heads=4,
    text_hidden=512,
    text_level_layers=(0, 2, 3),
    dim=128,
)

PRESETS = {spec.name: spec for spec in (OFFICIAL, TINY)}
