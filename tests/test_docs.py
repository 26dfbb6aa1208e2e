"""Every command and every option is documented; run `make docs` when this fails."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from hat_export.cli import bench, export
from hat_export.cli.command import Command

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = {"hat-export": export, "hat-bench": bench}


def commands(program: str) -> tuple[Command, ...]:
    return PROGRAMS[program].COMMANDS


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("program", PROGRAMS)
def test_docs_say_of_every_command_what_its_help_says(program: str) -> None:
    """Not the whole text: releases of Typer write types and defaults in different ways."""
    text = (ROOT / "docs" / "cli" / f"{program}.md").read_text()
    group = get_command(PROGRAMS[program].app)
    sections = re.split(rf"^## `{program} (\S+)`$", text, flags=re.MULTILINE)[1:]
    assert sections[::2] == [command.name for command in commands(program)]
    for command, section in zip(commands(program), sections[1::2], strict=True):
        shown = group.commands[command.name]  # type: ignore[attr-defined]
        assert squeezed(shown.help) in squeezed(section)
        documented = re.findall(r"^\* `([^`]*)`(?:: (.*))?$", section, re.MULTILINE)
        parameters = [one for one in shown.params if not one.hidden]
        assert len(documented) == len(parameters) + 1, f"{program} {command.name}"  # --help
        for parameter in parameters:
            names = [*parameter.opts, *parameter.secondary_opts]
            (said,) = [
                words
                for spelling, words in documented
                if set(names) <= set(re.findall(r"[\w-]+", spelling))
            ]
            assert squeezed(parameter.help) in squeezed(said), f"{program} {command.name} {names}"
        for example in command.examples:
            assert f"\n{example}\n" in section


@pytest.mark.parametrize("program", PROGRAMS)
def test_readme_leads_to_every_command(program: str) -> None:
    """It shows a few, which exist, and links to the page that has all of them."""
    readme = (ROOT / "README.md").read_text()
    assert f"(docs/cli/{program}.md)" in readme
    blocks = "".join(re.findall(r"^```\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL))
    shown = set(re.findall(rf"^{program} (\S+)", blocks, re.MULTILINE))
    assert len(shown) >= 2
    assert shown <= {command.name for command in commands(program)}


def test_every_link_of_readme_leads_to_a_file() -> None:
    readme = (ROOT / "README.md").read_text()
    targets = [link for link in re.findall(r"\]\(([^)#]+)", readme) if "://" not in link]
    assert len(targets) > 10
    assert [target for target in targets if not (ROOT / target).is_file()] == []
