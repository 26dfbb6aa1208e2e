"""Where what may be kept between runs is kept."""

from __future__ import annotations

import os
from pathlib import Path

#: Names another folder.
CACHE_VARIABLE = "HAT_EXPORT_CACHE"


def default_cache() -> Path:
    """The folder that ``HAT_EXPORT_CACHE`` names, else as the XDG base directories say."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hat-export"
