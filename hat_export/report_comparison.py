"""Two reports of the same kind side by side, by a table of what can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hat_export.errors import InputError
from hat_export.recall.two_reports import compare_parity
from hat_export.report import REPORT_VERSION, Report

#: A report of some megabytes is plausible, one of a gigabyte isn't one.
MAX_BYTES = 1 << 30

#: Compares two reports of one kind: (content, content, names) -> Report.
Comparer = Callable[[Mapping[str, Any], Mapping[str, Any], tuple[str, str]], Report]


def read_report(path: Path) -> Mapping[str, Any]:
    """A report's JSON.

    Raises:
        InputError: if the file isn't one, or is of another version.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes is too large for a report")
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); expected --report NAME.json") from None
    if not isinstance(content, dict) or not isinstance(content.get("data"), dict):
        raise InputError(f"{path}: not a report of hat-bench; expected --report NAME.json")
    if content.get("version") != REPORT_VERSION:
        raise InputError(
            f"{path}: report version {content.get('version')}; this version reads "
            f"{REPORT_VERSION}: run the benchmark again"
        )
    return content


#: Kind of report -> what compares two of them. One entry for every kind that can be compared.
COMPARERS: dict[str, Comparer] = {"parity": compare_parity}


def compare_reports(first: Path, second: Path) -> Report:
    """Compare two JSON reports of the same kind.

    Args:
        first: The earlier, or the one to hold against.
        second: The later.

    Raises:
        InputError: if one isn't a report, they are of different kinds, or of one that can't be
            compared.
    """
    contents = [read_report(path) for path in (first, second)]
    kinds = [str(content.get("kind")) for content in contents]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"{first} is a report of {kinds[0]}, {second} one of {kinds[1]}; expected two of a kind"
        )
    if kinds[0] not in COMPARERS:
        raise InputError(
            f"{first}: reports of {kinds[0]} can't be compared; those that can: "
            f"{', '.join(COMPARERS)}"
        )
    return COMPARERS[kinds[0]](contents[0], contents[1], (str(first), str(second)))
