"""Folders that the first of pytest-xdist's workers to ask makes, and that all of them read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder by its name; nothing may be written to it after it was made.

    Args:
        factory: pytest's own; all workers of a run have their folders below the same one.
        name: Of the folder.
        make: Writes it; the path that it gets doesn't exist. If it fails, the next to ask tries
            again.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    target = root / "shared" / name
    target.parent.mkdir(exist_ok=True)
    with FileLock(target.with_name(f"{name}.lock")):
        if not target.exists():
            unfinished = target.with_name(f"{name}.unfinished")
            make(unfinished)
            unfinished.rename(target)
    return target
