"""Deterministic stand-in weights for the HAT checkpoint layout.

A trained HAT checkpoint is about 800 MB, too big to ship beside a test-suite and not
ours to redistribute.  For checking that two implementations compute the same function
any fixed weights will do, so this module makes every tensor from nothing but its
official state_dict KEY and its SHAPE.  Only numpy is needed.

    import json
    from hat_reference_weights import make_weights
    table  = json.load(open("official_state_dict.json"))["tensors"]
    arrays = make_weights({k: v["shape"] for k, v in table.items()})

How one tensor is made
----------------------
1. ``seed = int.from_bytes(sha256(key as utf-8).digest()[:8], "little")``
2. ``raw  = PCG64(seed).random_raw(number of elements)``   (64-bit integers, C order)
3. Each 64-bit integer is cut into four 16-bit lanes and the lanes are added.  The sum
   ``s`` of four uniform integers is bell-shaped (Irwin-Hall, |z| <= 3.47, kurtosis 2.4);
   ``z = float32(s - 131070) * float32(UNIT)`` has mean 0 and standard deviation 1.
4. ``value = float32(scale) * z`` or, for normalisation weights, ``1 + float32(0.1) * z``,
   in float32 throughout, reshaped to the tensor's shape.

Why not ``Generator.standard_normal``: numpy promises a fixed stream only for the raw
integers of a bit generator, and the tail of its normal sampler calls the C library's
log and exp.  The recipe above is integer arithmetic followed by one or two single
IEEE-754 float32 operations per element, so it is the same bit for bit on every
platform and numpy version (``CHECKSUMS`` at the end lets you prove it).

Scales, by kind of tensor
-------------------------
=================================  =====================================================
relative position bias table       1.0 * z
normalisation weight (1-D)         1 + 0.1 * z
any bias                           0.02 * z
embedding table                    0.05 * z
linear / convolution weight        gain * z / sqrt(fan_in), fan_in = product of shape[1:]
=================================  =====================================================

``gain`` is 1 but for four kinds of projection (``GAINS``).  With a gain of 1 everywhere
attention is nearly uniform and, after twelve BERT layers, all tokens of a caption become
the same vector (cosine 0.999), so that a wrong attention mask or a wrong score would
hardly show.  With these gains attention is peaked, tokens and images stay apart, and the
activations keep a standard deviation of 1 to 5.

Tensors that are computed, not learned (``relative_position_index``, ``attn_mask``,
``position_ids``) are left out of the result: keep what the model built.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

#: 1 / standard deviation of the sum of four uniform integers on [0, 65535].
UNIT = 1.0 / math.sqrt(4.0 * (65536.0**2 - 1.0) / 12.0)

#: Last component of the keys that must stay as the model made them.
COMPUTED = ("relative_position_index", "attn_mask", "position_ids")

#: Gains of the projections whose key ends so (all others: 1).
GAINS = {
    ".attn.qkv.weight": 1.6,
    ".attention.self.query.weight": 2.0,
    ".attention.self.key.weight": 2.0,
    ".attention.output.dense.weight": 0.35,
}

#: Components that mark an embedding table.
EMBEDDINGS = ("word_embeddings", "position_embeddings", "token_type_embeddings")


def seed_of(text: str) -> int:
    """The 64-bit seed that belongs to a name."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "little")


def raw_bits(text: str, count: int) -> np.ndarray:
    """``count`` unsigned 64-bit integers that belong to a name."""
    return np.random.PCG64(seed_of(text)).random_raw(int(count))


def unit_noise(text: str, shape: Sequence[int]) -> np.ndarray:
    """float32 array of bell-shaped noise (mean 0, standard deviation 1)."""
    count = int(np.prod(shape, dtype=np.int64))
    raw = raw_bits(text, count)
    lane = np.uint64(0xFFFF)
    total = (raw & lane).astype(np.int32)
    for shift in (16, 32, 48):
        total += ((raw >> np.uint64(shift)) & lane).astype(np.int32)
    total -= 131070
    return (total.astype(np.float32) * np.float32(UNIT)).reshape(tuple(shape))


def kind_of(key: str, shape: Sequence[int]) -> str:
    """One of: computed, bias_table, norm, bias, embedding, linear."""
    parts = key.split(".")
    if parts[-1] in COMPUTED:
        return "computed"
    if parts[-1] == "relative_position_bias_table":
        return "bias_table"
    if parts[-1] == "bias":
        return "bias"
    if parts[-1] == "weight":
        if len(shape) == 1:
            return "norm"
        if len(parts) > 1 and parts[-2] in EMBEDDINGS:
            return "embedding"
        if len(shape) >= 2:
            return "linear"
    raise ValueError(f"no rule for tensor {key!r} with shape {tuple(shape)}")


def make_weight(key: str, shape: Sequence[int]) -> np.ndarray:
    """The float32 array for one key of the official state_dict."""
    kind = kind_of(key, shape)
    if kind == "computed":
        raise ValueError(f"{key!r} is computed by the model, it has no made-up value")
    noise = unit_noise(key, shape)
    if kind == "norm":
        return np.float32(1.0) + np.float32(0.1) * noise
    if kind == "linear":
        fan_in = int(np.prod(shape[1:], dtype=np.int64))
        gain = next((g for end, g in GAINS.items() if key.endswith(end)), 1.0)
        return np.float32(gain / math.sqrt(fan_in)) * noise
    scale = {"bias_table": 1.0, "bias": 0.02, "embedding": 0.05}[kind]
    return np.float32(scale) * noise


def make_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """All learned tensors of a mapping key -> shape (computed ones are left out)."""
    return {
        key: make_weight(key, shape)
        for key, shape in shapes.items()
        if kind_of(key, shape) != "computed"
    }


def checksum(array: np.ndarray) -> str:
    """SHA-256 (first 16 hex digits) of the little-endian bytes in C order."""
    data = np.ascontiguousarray(array)
    data = data.astype(data.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(data.tobytes()).hexdigest()[:16]


#: A few tensors by which a port of this recipe can be checked.
CHECKSUMS: dict[str, tuple[tuple[int, ...], str]] = {
    "vit_model.patch_embed.proj.weight": ((128, 3, 4, 4), "955b0b3fc0f145fd"),
    "vit_model.patch_embed.norm.weight": ((128,), "cd1a4cf3455c1fcc"),
    "vit_model.layers.0.blocks.1.attn.relative_position_bias_table": (
        (169, 4),
        "3cb4b825e48545cd",
    ),
    "vit_model.layers.3.blocks.1.mlp.fc1.weight": ((4096, 1024), "47a2da1e495e12c9"),
    "vit_model.norm_2.bias": ((512,), "44266bf9d4a43082"),
    "text_transformer.embeddings.position_embeddings.weight": ((512, 768), "b60456ede1ac9b90"),
    "text_transformer.encoder.layer.11.output.LayerNorm.weight": ((768,), "fd5d4ea546391ffc"),
    "cross_modal_image_transform_1.weight": ((768, 256), "c718f8f00ac96111"),
    "cross_modal_text_transform.bias": ((768,), "cf5428276d303ca9"),
    "vit_model.layers.2.blocks.17.attn.qkv.weight": ((1536, 512), "56aaaff6ec72ac2f"),
    "text_transformer.encoder.layer.0.attention.self.key.weight": ((768, 768), "6ae05dc7f211f6ee"),
    "text_transformer.encoder.layer.5.attention.output.dense.weight": (
        (768, 768),
        "7d34eb68c0bf353e",
    ),
}


def self_test() -> None:
    """Raise if this machine does not reproduce the recorded checksums."""
    for key, (shape, want) in CHECKSUMS.items():
        got = checksum(make_weight(key, shape))
        if got != want:
            raise AssertionError(f"{key}: checksum {got}, expected {want}")


if __name__ == "__main__":
    self_test()
    print(f"{len(CHECKSUMS)} checksums reproduced")
