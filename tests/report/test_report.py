"""Reports in every format, from one set of tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hat_export.errors import InputError
from hat_export.report.report import Report, Table, write_report

EVIL = "<script>alert(1)</script> | x"
REPORT = Report(
    kind="parity",
    title="A & B",
    passed=False,
    summary=(EVIL,),
    tables=(Table("T", ("name", "value"), ((EVIL, "1"), ("b", "2")), note="n < 1"),),
    data={"x": [1, 2]},
)


def test_html_escapes_and_needs_nothing_from_elsewhere() -> None:
    page = REPORT.to_html()
    assert "<script" not in page
    assert "A &amp; B" in page
    assert "n &lt; 1" in page
    assert "http" not in page
    assert 'class="verdict failed"' in page
    assert "prefers-color-scheme:dark" in page


def test_markdown_keeps_cells_apart() -> None:
    lines = REPORT.to_markdown().splitlines()
    row = next(line for line in lines if line.startswith("| <script>"))
    assert row.count(" | ") == 1
    assert r"\|" in row


def test_json_is_strict() -> None:
    content = json.loads(REPORT.to_json())
    assert (content["kind"], content["version"], content["data"]) == ("parity", 1, {"x": [1, 2]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report("parity", "t", None, (), (), {"x": float("nan")}).to_json()


@pytest.mark.parametrize("name", ["r.json", "r.md", "r.html"])
def test_written_by_ending(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / name
    write_report(REPORT, path)
    assert path.stat().st_size > 50
    assert [item.name for item in path.parent.iterdir()] == [name]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.json, \.md, \.html"):
        write_report(REPORT, tmp_path / "r.pdf")
