"""What docs/stability.md promises is recorded, and changes only when the record does."""

from __future__ import annotations

import public_surface
from places import ROOT


def test_the_public_surface_is_the_recorded_one() -> None:
    recorded = public_surface.RECORD.read_text(encoding="utf-8").splitlines()
    found = public_surface.lines()
    gone, new = (sorted(set(a) - set(b)) for a, b in ((recorded, found), (found, recorded)))
    assert (gone, new) == ([], []), (
        "the public surface changed: say so in CHANGELOG.md and docs/upgrading.md, then run "
        "python tests/support/public_surface.py"
    )
    assert recorded == found  # sorted, each once


def test_the_page_names_what_is_public() -> None:
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    names = [path.replace(":", ".") for path in public_surface.PUBLIC]
    names += [*public_surface.PROGRAMS, "assert_parity"]
    assert [name for name in names if f"`{name}`" not in page] == []
    for name in public_surface.FORMATS:
        assert name in page
