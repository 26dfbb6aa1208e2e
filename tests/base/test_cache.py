"""One folder for what is kept between runs, named by one variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from hat_export.base.cache import CACHE_VARIABLE, default_cache


def test_the_variable_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    assert default_cache() == tmp_path / "named"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert default_cache() == tmp_path / "xdg" / "hat-export"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_cache() == tmp_path / ".cache" / "hat-export"
