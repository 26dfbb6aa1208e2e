"""A command as both programs show it: help in panels, examples, old spellings refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand

from hat_export.cli.options import Panel
from hat_export.errors import HatError

PANELS = tuple(panel.value for panel in Panel)


class RenamedOptionError(HatError):
    """An option has another name now; the old one is refused, not taken for something else."""

    exit_code = 2  # as for any other usage error


@dataclass(frozen=True)
class Command:
    """A command of a program.

    Attributes:
        name: As it is typed.
        function: What it runs; its parameters are the options, its docstring is the help.
        examples: Lines to be typed, shown at the end of the help.
        renamed: Old spelling of an option -> what is typed instead.
    """

    name: str
    function: Callable[..., None]
    examples: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)


def program(name: str, purpose: str, commands: tuple[Command, ...]) -> typer.Typer:
    """A command line of some commands.

    Args:
        name: Name of the program.
        purpose: First line of its help.
        commands: In the order in which ``--help`` lists them.
    """
    app = typer.Typer(
        name=name,
        help=purpose,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    # With a callback there are commands even where there is only one.
    app.callback(help=purpose)(_nothing)
    for command in commands:
        examples = "\n".join(("**Examples**:", "", "```console", *command.examples, "```"))
        app.command(command.name, cls=_shown(command), epilog=examples)(command.function)
    return app


def _nothing() -> None:
    """What a program does before its command: nothing."""


def _shown(command: Command) -> type[TyperCommand]:
    class Shown(_PanelCommand):
        renamed = command.renamed
        examples = command.examples

    return Shown


class _PanelCommand(TyperCommand):
    """Plain text instead of Rich's boxes: it fits 80 columns, and needs no import of Rich.

    A context is of a class of Click's that releases of Typer have in different places.
    """

    renamed: ClassVar[Mapping[str, str]]
    examples: ClassVar[tuple[str, ...]]

    def get_params(self, ctx: Any) -> list[Any]:
        """Arguments as they are, then the options panel by panel."""
        return sorted(super().get_params(ctx), key=_place)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse old spellings before anything is parsed.

        Raises:
            RenamedOptionError: if there is one.
        """
        for argument in args:
            name = argument.partition("=")[0]
            if name == "--":
                break
            if name in self.renamed:
                raise RenamedOptionError(f"{name} is now {self.renamed[name]}")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then a list for every panel."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections.setdefault(_section(parameter), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples line by line: what is to be typed isn't wrapped."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def _section(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return "Arguments"
    return getattr(parameter, "rich_help_panel", None) or "Options"


def _place(parameter: Any) -> int:
    """Arguments first, --help last."""
    section = _section(parameter)
    if section == "Arguments":
        return -1
    return PANELS.index(section) if section in PANELS else len(PANELS)
