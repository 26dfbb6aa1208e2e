"""Reads a JSON report that a command wrote; a file is taken as what anybody may have written."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hat_export.errors import InputError
from hat_export.report.report import REPORT_VERSION

#: A report of a hundred cases, or of thousands of changed queries, has some megabytes.
MAX_BYTES = 256 << 20


def read_report(path: Path, kinds: Sequence[str] = ()) -> dict[str, Any]:
    """A JSON report, as ``--report NAME.json`` writes it.

    Args:
        path: The file.
        kinds: Kinds that are wanted; empty for any.

    Raises:
        InputError: if it is no such report, or of another version.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: larger than any report ({MAX_BYTES} bytes)")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path}: not JSON; give a report that --report wrote as .json") from None
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("kind"), str)
        or not isinstance(content.get("data"), dict)
    ):
        raise InputError(f"{path}: not a report; give a file that --report wrote as .json")
    if content.get("version") != REPORT_VERSION:
        raise InputError(
            f"{path}: report version {content.get('version')}; this version reads "
            f"{REPORT_VERSION}: run the benchmark again"
        )
    if kinds and content["kind"] not in kinds:
        raise InputError(f"{path}: a {content['kind']} report; expected {' or '.join(kinds)}")
    return content


def _finite(text: str) -> float:
    """A number as reports have them: they hold neither NaN nor infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} in a report")
    return value


def _whole(text: str) -> int:
    value = int(text)
    if value.bit_length() > 63:
        raise ValueError(f"a number of {len(text)} digits in a report")
    return value
