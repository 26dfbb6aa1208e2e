"""The file in which a search keeps what it has measured, so that it can go on from there.

It is JSON that a person may have changed, or another program written: nothing of it is used before
all of it is as a search writes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hat_export.errors import MALFORMED, InputError
from hat_export.parity.statistics import RECALLS, Delta

FORMAT = "hat-export quantization search"
VERSION = 1

#: Numbers of every plan that was measured.
NUMBERS = ("predicted", "measured", "bytes", "seconds")


def new_state(identity: Mapping[str, Any]) -> dict[str, Any]:
    """A state in which nothing is measured.

    Args:
        identity: What another search would have different.
    """
    empty: dict[str, Any] = {"noise": {}, "tried": [], "reference_seconds": None}
    return {**identity, "format": FORMAT, "version": VERSION, **empty}


def read_state(path: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The state of an earlier run of the same search.

    Args:
        path: The file.
        identity: As for :func:`new_state`.

    Raises:
        InputError: if it is damaged, or of another search.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if (found["format"], found["version"]) != (FORMAT, VERSION):
            raise InputError(f"{path}: not the state of a {FORMAT} of version {VERSION}")
        for key, value in identity.items():
            if found[key] != value:
                raise InputError(
                    f"{path}: belongs to a search with {key} {found[key]!s:.80}, this one has "
                    f"{value}; name another file"
                )
        _check(found)
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: not a readable state of a search ({reason})") from None
    return dict(found)


def restored(deltas: Mapping[str, Mapping[str, Any]]) -> dict[str, Delta]:
    """The metrics of a plan that was measured."""
    return {metric: Delta(**values) for metric, values in deltas.items()}


def _check(found: Mapping[str, Any]) -> None:
    reference = found.get("reference_seconds")  # states of older versions have none
    if reference is not None:
        _number(reference)
        if reference <= 0:
            raise ValueError(f"reference_seconds is {reference}")
    for schemes in found["noise"].values():
        for value in schemes.values():
            _number(value)
    for entry in found["tried"]:
        expected = {"name", "plan", "deltas", "verdict", *NUMBERS}
        if set(entry) != expected or not isinstance(entry["plan"], dict):
            raise ValueError("a plan that was tried lacks a field, or has one too many")
        for name in NUMBERS:
            _number(entry[name])
        if not {*RECALLS, "rsum"} <= set(restored(entry["deltas"])):
            raise ValueError("a plan that was tried lacks a recall")
        for values in entry["deltas"].values():
            for name, value in values.items():
                if value is not None or name in ("reference", "candidate", "low", "high"):
                    _number(value)


def _number(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"expected a finite number, got {value!r:.80}")
