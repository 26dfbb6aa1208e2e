"""One meaning for each option over all commands, and help that can be read."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from hat_export.cli import bench, export
from hat_export.cli.command import Command, RenamedOptionError
from hat_export.cli.options import OPTIONS, Panel
from places import ROOT

PROGRAMS = {
    "hat-export": (export.app, export.COMMANDS),
    "hat-bench": (bench.app, bench.COMMANDS),
}
COMMANDS = [
    pytest.param(program, command, id=f"{program} {command.name}")
    for program, (_, commands) in PROGRAMS.items()
    for command in commands
]
RENAMED = [
    pytest.param(program, command, old, new, id=f"{program} {command.name} {old}")
    for program, (_, commands) in PROGRAMS.items()
    for command in commands
    for old, new in command.renamed.items()
]
#: Options that the long commands may show before "Advanced", --help among them.
MOST_SHOWN = 12


def options(command: Command) -> Iterator[tuple[str, OptionInfo, Any]]:
    """Name, Typer's description and type of a value of every option."""
    hints = get_type_hints(command.function, include_extras=True)
    for parameter in inspect.signature(command.function).parameters:
        hint, *details = get_args(hints[parameter])
        (info,) = [one for one in details if not isinstance(one, str)]
        if isinstance(info, OptionInfo):
            assert declarations(info), f"{command.name} {parameter}: say its spelling"
            yield declarations(info)[0].partition("/")[0], info, value_type(hint)


def declarations(info: OptionInfo) -> tuple[str, ...]:
    """An option's spellings; inside ``Annotated`` Typer takes the first for a default at first."""
    return (info.default, *(info.param_decls or ()))


def value_type(hint: Any) -> Any:
    """The type of one value: without None, and out of its list."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is list or len(kinds) == 1:
        return value_type(kinds[0])
    return hint


def help_of(program: str, command: Command) -> str:
    shown = CliRunner().invoke(PROGRAMS[program][0], [command.name, "--help"])
    assert shown.exit_code == 0
    return shown.output


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_an_option_means_what_the_table_says(program: str, command: Command) -> None:
    for name, info, kind in options(command):
        where = f"{program} {command.name} {name}"
        assert info.help, where
        assert info.rich_help_panel in {panel.value for panel in Panel}, where
        if name in OPTIONS:
            meaning = OPTIONS[name]
            assert declarations(info) == meaning.declarations(name), where
            assert info.help.startswith(meaning.help), where
            assert info.rich_help_panel == meaning.panel.value, where
            assert issubclass(kind, meaning.type), where


def test_what_several_commands_have_is_in_the_table() -> None:
    names = Counter(
        name
        for _, commands in PROGRAMS.values()
        for command in commands
        for name, _, _ in options(command)
    )
    shared = {name for name, count in names.items() if count > 1}
    assert shared <= set(OPTIONS)
    assert {name for name, meaning in OPTIONS.items() if meaning.taken} <= set(names)
    assert not {name for name, meaning in OPTIONS.items() if not meaning.taken} & set(names)


def test_spellings_do_not_collide_with_the_table() -> None:
    """A second spelling, such as --no-cache or -k, belongs to one option alone."""
    taken = {
        spelling: name
        for name, meaning in OPTIONS.items()
        for spelling in (meaning.short, meaning.negative)
        if spelling
    }
    assert not set(taken) & set(OPTIONS)
    for _, commands in PROGRAMS.values():
        for command in commands:
            for name, info, _ in options(command):
                for declared in declarations(info):
                    for spelling in declared.split("/"):
                        assert spelling == name or taken.get(spelling, name) == name


def test_counts_are_called_counts() -> None:
    """--images is a folder everywhere; what counts things ends so or says per what."""
    for _, commands in PROGRAMS.values():
        for command in commands:
            for name, _, kind in options(command):
                if re.search(r"(images|captions)$", name):
                    assert kind is not int, f"{command.name} {name}"


@pytest.mark.parametrize(("program", "command", "old", "new"), RENAMED)
@pytest.mark.parametrize("form", ["{} 3", "{}=3"])
def test_an_old_spelling_is_refused(
    program: str, command: Command, old: str, new: str, form: str
) -> None:
    app, _ = PROGRAMS[program]
    done = CliRunner().invoke(app, [command.name, "some", "thing", *form.format(old).split()])
    assert isinstance(done.exception, RenamedOptionError)
    assert done.exception.exit_code == 2
    assert str(done.exception) == f"{old} is now {new}"
    names = {name for name, _, _ in options(command)}
    assert old not in names
    assert new.split(maxsplit=1)[0] in names
    upgrading = (ROOT / "docs" / "upgrading.md").read_text()
    assert re.search(rf"^\| `{program} {command.name} {old}[ `].* \| `{new}[ `]", upgrading, re.M)


def test_the_value_of_another_option_is_no_spelling() -> None:
    done = CliRunner().invoke(bench.app, ["profile", "--", "--images"])
    assert not isinstance(done.exception, RenamedOptionError)


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_fits_80_columns_and_shows_examples(program: str, command: Command) -> None:
    text = help_of(program, command)
    assert max(map(len, text.splitlines())) <= 80
    assert 1 <= len(command.examples) <= 2
    for example in command.examples:
        assert example.split()[:2] == [program, command.name]
        assert f"  {example}\n" in text
        known = {name for name, _, _ in options(command)} | {"-k", "-q"}
        assert set(re.findall(r"(?<= )--?[a-z][a-z0-9-]*", example)) <= known


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_help_is_grouped_in_panels(program: str, command: Command) -> None:
    titles = re.findall(r"^([A-Z][a-z]+):$", help_of(program, command), re.M)
    order = ["Arguments", *(panel.value for panel in Panel), "Options", "Examples"]
    assert titles == [title for title in order if title in titles]
    assert {info.rich_help_panel for _, info, _ in options(command)} <= set(titles)


@pytest.mark.parametrize("name", ["hat-export onnx", "hat-export quantize", "hat-bench parity"])
def test_a_long_command_shows_a_dozen_options_first(name: str) -> None:
    program, _, wanted = name.partition(" ")
    (command,) = [one for one in PROGRAMS[program][1] if one.name == wanted]
    first = [info for _, info, _ in options(command) if info.rich_help_panel != Panel.advanced]
    assert len(first) + len(["--help"]) <= MOST_SHOWN


def test_fp16_is_short_for_the_precision(tmp_path: Path) -> None:
    """What follows is the same; only another precision beside it is refused."""
    missing = str(tmp_path / "none")
    said = []
    for spelled in (["--fp16"], ["--precision", "fp16"], ["--fp16", "--precision", "fp16"], []):
        done = CliRunner().invoke(export.app, ["trt", missing, str(tmp_path / "out"), *spelled])
        said.append(str(done.exception))
    assert set(said) == {f"{missing}: no such checkpoint or bundle"}


def test_the_choices_of_a_precision_have_one_spelling() -> None:
    """fp32 is called so in every command."""
    known = {"fp32", "bf16x6", "bf16x3", "bf16", "fp16", "int8", "fp8"}
    for _, commands in PROGRAMS.values():
        for command in commands:
            for name, _, kind in options(command):
                if name == "--precision":
                    assert issubclass(kind, StrEnum)
                    assert {choice.value for choice in kind} <= known
