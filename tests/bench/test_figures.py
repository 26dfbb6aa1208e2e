"""README's figures are what the results files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from places import BENCH, on_path


@pytest.fixture(scope="module")
def readme():
    with on_path(BENCH):
        import readme

        return readme


def test_figures_are_those_of_the_results(readme) -> None:
    files = [path.name for path in readme.stale()]
    assert not files, f"run python bench/readme.py: {files} differ from bench/results"


def test_every_part_has_a_place_and_a_renderer(readme) -> None:
    text = "".join(path.read_text() for path in readme.FILES)
    places = [found[2] for found in readme.PLACE.finditer(text)]
    assert sorted(places) == sorted(readme.RENDERERS)
    assert text.count("<!-- figures:") == text.count("<!-- end of figures -->") == len(places)


def test_the_last_line_counts(readme, tmp_path: Path) -> None:
    row = {"images": 10, "captions": 50, "seconds": 3.0, "peak_memory_bytes": 2e9}
    entry = {
        "machine": {"cpu": "first", "cores": 2, "architecture": "x"},
        "versions": {"numpy": "2.0"},
        "hardware": {"cpu_flags": "avx2"},
        "date": "2026-01-01",
        "rows": [row],
    }
    lines = [json.dumps(entry), json.dumps(entry | {"rows": [row | {"seconds": 7.0}]})]
    (tmp_path / "full.jsonl").write_text("\n".join(lines) + "\n")
    place = "<!-- figures: full -->\nold\n<!-- end of figures -->"
    text = readme.filled(f"before {place} after", tmp_path)
    assert "takes 7 seconds and 2.0 GB. first (AVX2), 2 cores, numpy 2.0; 2026-01-01." in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text
    assert "Not measured yet" in readme.filled(place.replace("full", "large"), tmp_path)
    with pytest.raises(SystemExit, match="nonsense"):
        readme.filled(place.replace("full", "nonsense"), tmp_path)
