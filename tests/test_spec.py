"""Model specs: JSON and back, and every inconsistency refused with the field's name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hat_export.errors import SpecError
from hat_export.spec import OFFICIAL, PRESETS, TINY, ModelSpec


@pytest.mark.parametrize("spec", PRESETS.values(), ids=PRESETS)
def test_json_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.parse(json.dumps(spec.to_json())) == spec


def test_presets_are_found_by_their_names() -> None:
    assert {"hat-swin-base": OFFICIAL, "hat-tiny-emojicap": TINY} == PRESETS


def test_official_sizes() -> None:
    assert OFFICIAL.stage_sides == (56, 28, 14, 7)
    assert OFFICIAL.level_regions == (784, 196, 49)
    assert OFFICIAL.level_widths == (256, 512, 1024)


def test_official_values() -> None:
    """What the tensors of a checkpoint don't tell: as published (arXiv 2308.04343)."""
    assert (OFFICIAL.softmax_lambda, OFFICIAL.direction) == (9.0, "i2t")
    assert OFFICIAL.text_level_layers == (3, 9, 11)
    assert (OFFICIAL.resize_size, OFFICIAL.max_words, OFFICIAL.text_heads) == (256, 32, 12)
    assert OFFICIAL.image_heads == (4, 8, 16, 32)


def test_tiny_sizes() -> None:
    assert TINY.level_regions == (64, 16, 4)
    assert TINY.level_widths == (64, 128, 256)


def test_missing_fields_are_the_official_ones() -> None:
    assert ModelSpec.parse('{"softmax_lambda": 4}') == replace(OFFICIAL, softmax_lambda=4.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"heads": 3}', "unknown spec field 'heads'"),
        ('{"image_size": "224"}', "image_size is '224'; expected int"),
        ('{"image_size": 224.0}', "image_size is 224.0; expected int"),
        ('{"image_size": true}', "image_size is True; expected int"),
        ('{"softmax_lambda": "9"}', "softmax_lambda is '9'; expected float"),
        ('{"softmax_lambda": null}', "softmax_lambda is None; expected float"),
        ('{"depths": 2}', "depths is 2; expected a list"),
        ('{"depths": [2, 2, "18", 2]}', "depths is '18'; expected int"),
        ('{"name": 5}', "name is 5; expected str"),
    ],
)
def test_bad_json(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=f"x.json: .*{message}"):
        ModelSpec.parse(text, "x.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (2, 2)}, "4 entries"),
        ({"image_heads": (4, 8, 16)}, "4 entries"),
        ({"depths": (2, 2, 0, 2)}, "at least 1"),
        ({"image_size": 0}, "image_size is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
        ({"image_size": 230}, "image_size 230 is not a multiple of 32"),
        ({"window_size": 6}, "window_size 6 does not divide"),
        ({"image_heads": (3, 8, 16, 32)}, "3 heads do not divide the 128 channels"),
        ({"text_heads": 7}, "text_heads 7 does not divide"),
        ({"text_level_layers": (3, 9, 12)}, "text_level_layers"),
        ({"text_level_layers": (3, 9)}, "text_level_layers"),
        ({"resize_size": 200}, "resize_size 200 is smaller than the crop 224"),
        ({"max_words": 1}, "max_words 1 must lie between 2"),
        ({"max_words": 513}, "max_words 513 must lie between 2 and text_positions 512"),
        ({"direction": "both"}, "direction 'both' is not i2t or t2i"),
        ({"softmax_lambda": 0.0}, "softmax_lambda must be above 0"),
        ({"softmax_lambda": float("nan")}, "softmax_lambda must be above 0"),
    ],
)
def test_inconsistent_specs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(OFFICIAL, **changes)
