"""The state of a quantization search, as a person may have changed it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx")

from hat_export.errors import InputError
from hat_export.parity.statistics import RECALLS
from hat_export.quantize.search_state import new_state, read_state, restored

IDENTITY = {"source": "a", "images": 5}


def state() -> dict[str, Any]:
    delta = {"reference": 50.0, "candidate": 49.0, "low": -2.0, "high": 0.0, "spread": None}
    entry = {"name": "x", "plan": {}, "verdict": "passed", "bytes": 5, "seconds": 0.1}
    entry |= {"predicted": 0.1, "measured": 0.1}
    entry["deltas"] = {metric: dict(delta) for metric in (*RECALLS, "rsum")}
    return new_state(IDENTITY) | {"noise": {"b": {"int8": 0.5}}, "tried": [entry]}


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps(state()))
    found = read_state(path, IDENTITY)
    assert found == state()
    assert restored(found["tried"][0]["deltas"])["rsum"].candidate == 49


@pytest.mark.parametrize(
    "damage",
    [
        lambda s: s.update(format="x"),
        lambda s: s.update(reference_seconds=0),
        lambda s: s.update(reference_seconds="x"),
        lambda s: s.update(images=6),
        lambda s: s.update(noise=[]),
        lambda s: s["noise"]["b"].update(int8="much"),
        lambda s: s["noise"]["b"].update(int8=float("nan")),
        lambda s: s["tried"][0].pop("seconds"),
        lambda s: s["tried"][0].update(seconds="fast"),
        lambda s: s["tried"][0].update(more=1),
        lambda s: s["tried"][0]["deltas"].pop("rsum"),
        lambda s: s["tried"][0]["deltas"]["rsum"].update(low=None),
        lambda s: s["tried"][0]["deltas"]["rsum"].update(other=1),
        lambda s: s["tried"].append(None),
        lambda s: s.pop("tried"),
    ],
)
def test_a_damaged_state_is_refused(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object]
) -> None:
    content = state()
    damage(content)
    path = tmp_path / "state.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=str(path)) as error:
        read_state(path, IDENTITY)
    assert "\n" not in str(error.value)
