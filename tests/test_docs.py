"""Every command and every option is documented; run `make docs` when this fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from hat_export.cli import bench, export

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"hat-export": export.app, "hat-bench": bench.app}


def commands(app: Typer) -> list[str]:
    names = [one.callback.__name__ for one in app.registered_commands if one.callback]
    return [name.replace("_", "-") for name in names]  # as Typer does


@pytest.mark.parametrize("program", PROGRAMS)
def test_docs_know_every_option(program: str) -> None:
    app = PROGRAMS[program]
    text = (ROOT / "docs" / "cli" / f"{program}.md").read_text()
    for command in commands(app):
        _, _, section = text.partition(f"## `{program} {command}`")
        section = section.partition("\n## ")[0]
        assert section, f"{program} {command}"
        shown = CliRunner().invoke(app, [command, "--help"]).output
        options = set(re.findall(r"--[a-z][a-z-]+", shown))
        assert options
        assert options <= set(re.findall(r"--[a-z][a-z-]+", section)), f"{program} {command}"


@pytest.mark.parametrize("program", PROGRAMS)
def test_readme_shows_every_command(program: str) -> None:
    readme = (ROOT / "README.md").read_text()
    for command in commands(PROGRAMS[program]):
        assert f"{program} {command}" in readme
