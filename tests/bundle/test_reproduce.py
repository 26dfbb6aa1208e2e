"""The script beside a report: runs the same command, on the same inputs only."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from hat_export.bundle.reproduce import MOST_FILES, write_reproduction


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A report's script, and a program of the name that it calls, which tells its arguments."""
    (tmp_path / "data of mine.json").write_text("{}")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    program = tmp_path / "bin" / "hat-bench"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "[%s]" "$@"\n')
    program.chmod(0o755)
    inputs = {"reference": tmp_path / "model", "data": tmp_path / "data of mine.json"}
    command = ["hat-bench", "parity", "--data", "data of mine.json; echo no"]
    return write_reproduction(tmp_path / "out" / "report.html", command, inputs, tmp_path)


def run(script: Path) -> subprocess.CompletedProcess[str]:
    path = f"{script.parents[1] / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        [script, "--strict"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_runs_the_command(script: Path) -> None:
    assert script.name == "reproduce.sh"
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[parity][--data][data of mine.json; echo no][--strict]"


def test_it_refuses_other_inputs(script: Path) -> None:
    weights = script.parents[1] / "model" / "model.safetensors"
    weights.write_bytes(b"others")
    done = run(script)
    assert done.returncode == 1
    assert done.stderr == f"error: {weights} is not the file of the report\n"


def test_a_folder_of_pictures_is_not_hashed(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.png").write_bytes(b"")
    script = write_reproduction(tmp_path / "out" / "r.md", ["true"], {"data": tmp_path}, tmp_path)
    assert run(script).returncode == 0
    assert ".png" not in script.read_text()
