"""The figures in README and docs are what the results files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from places import BENCH, ROOT, on_path

ENTRY = {
    "machine": {"cpu": "first", "cores": 2, "architecture": "x"},
    "versions": {"numpy": "2.0"},
    "hardware": {"cpu_flags": "avx2"},
    "date": "2026-01-01",
}


@pytest.fixture(scope="module")
def tables():
    with on_path(BENCH):
        import tables

        return tables


def write(folder: Path, part: str, *measurements: list[dict[str, Any]]) -> None:
    lines = [json.dumps(ENTRY | {"rows": rows}) for rows in measurements]
    (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")


def test_figures_are_those_of_the_results(tables) -> None:
    files = [path.name for path in tables.stale()]
    assert not files, f"run python bench/tables.py: {files} differ from bench/results"


def test_every_part_has_a_place_and_a_renderer(tables) -> None:
    text = "".join(path.read_text() for path in tables.FILES)
    places = [found[2] for found in tables.PLACE.finditer(text)]
    assert sorted(places) == sorted([*tables.RENDERERS, tables.HEADLINE])
    assert text.count("<!-- figures:") == text.count("<!-- end of figures -->") == len(places)


def test_readme_has_the_headline_only(tables) -> None:
    found = tables.PLACE.findall((ROOT / "README.md").read_text())
    assert [part for _, part, _ in found] == [tables.HEADLINE]


def test_the_last_line_counts(tables, tmp_path: Path) -> None:
    row = {"images": 10, "captions": 50, "seconds": 3.0, "peak_memory_bytes": 2e9}
    write(tmp_path, "full", [row], [row | {"seconds": 7.0}])
    place = "<!-- figures: full -->\nold\n<!-- end of figures -->"
    text = tables.filled(f"before {place} after", tmp_path)
    assert "takes 7 seconds and 2.0 GB. first (AVX2), 2 cores, numpy 2.0; 2026-01-01." in text
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text
    assert "Not measured yet" in tables.filled(place.replace("full", "large"), tmp_path)
    with pytest.raises(SystemExit, match="nonsense"):
        tables.filled(place.replace("full", "nonsense"), tmp_path)


def test_the_headline_is_where_the_lead_over_the_fastest_rival_is_largest(
    tables, tmp_path: Path
) -> None:
    def point(name: str, **milliseconds: float | None) -> list[dict[str, Any]]:
        peers = {"ours": "hat-export, standard operators", "packed": "hat-export --target x"}
        peers |= {"fast": "fast", "slow": "slow", "other": "OpenVINO, precision of its choice"}
        return [
            {"point": name, "peer": peers[key], "median_ms": value}
            for key, value in milliseconds.items()
        ]

    write(
        tmp_path,
        "peers",
        [
            *point("image:8", ours=4.0, packed=5.0, fast=6.0, slow=90.0, other=1.0),
            *point("text:1x16", ours=9.0, packed=2.0, fast=None, slow=4.0, other=1.0),
        ],
    )
    text = tables.rendered(tables.HEADLINE, tmp_path)
    assert (
        "| float32 text encoder, 1 x 16 words | 2 ms | 4 ms | 2.0 times faster than slow |" in text
    )
    assert "Score: not measured yet: `python bench/figures.py scoring`" in text
    assert "float32 encoder: first (AVX2)" in text
    write(
        tmp_path,
        "quantization_official",
        [
            {"variant": "float32", "ms": {"image 1": 1.0}},
            {"variant": "hat-export int4-weights", "ms": {"image 1": 1.0}},
            {"variant": "hat-export int8-dynamic", "ms": {"image 1": 3.0}},
            {"variant": "stock", "ms": {"image 1": 33.0}},
            {"variant": "broken", "error": "why"},
        ],
    )
    text = tables.rendered(tables.HEADLINE, tmp_path)
    assert "| int8 image encoder, batch 1 | 3 ms | 33 ms | 11 times faster than stock |" in text
    assert "float32 encoder, int8 encoder: first (AVX2)" in text
