"""Text that may be shown on a terminal."""

from __future__ import annotations

import re

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text without control characters: names come from strangers, and a terminal obeys them."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)
