"""Folders appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hat_export.base.files import new_folder, write_text
from hat_export.errors import OutputError


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def begin(target: Path, content: str, error: BaseException | None = None, **options: bool) -> None:
    """Make a folder with a manifest, or fail on the way."""
    with new_folder(target, **options) as work:
        (work / "manifest.json").write_text(content)
        if error:
            raise error


def test_a_folder_appears_when_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with new_folder(target) as work:
        (work / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert names(tmp_path / "deep") == {"target"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        begin(tmp_path / "target", "1", error())
    assert names(tmp_path) == set()


def test_an_interrupted_replacement_leaves_the_old(tmp_path: Path) -> None:
    target = tmp_path / "target"
    begin(target, "old")
    with pytest.raises(ValueError, match="stop"):
        begin(target, "new", ValueError("stop"), overwrite=True)
    assert (target / "manifest.json").read_text() == "old"
    begin(target, "new", overwrite=True)
    assert (target / "manifest.json").read_text() == "new"
    assert names(tmp_path) == {"target"}


def test_existing_targets_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    with pytest.raises(OutputError, match="is no folder"), new_folder(tmp_path / "file"):
        pass
    with pytest.raises(OutputError, match="pass --overwrite"), new_folder(tmp_path / "photos"):
        pass
    with (
        pytest.raises(OutputError, match="holds files but no bundle"),
        new_folder(tmp_path / "photos", overwrite=True),
    ):
        pass
    assert (tmp_path / "photos" / "cat.png").exists()


def test_an_unwritable_place_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(OutputError, match="can't be written"),
        new_folder(tmp_path / "file" / "target"),
    ):
        pass
    with pytest.raises(OutputError, match="can't be written"):
        write_text(tmp_path / "file" / "report.md", "x")


def test_text_is_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "report.md"
    write_text(path, "one")
    write_text(path, "two")
    assert path.read_text() == "two"
    assert names(path.parent) == {"report.md"}
