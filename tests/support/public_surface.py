"""What docs/stability.md promises, a line a thing; run as a program it writes the recorded list."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

RECORD = Path(__file__).resolve().parents[1] / "public_surface.txt"
INDEX = (
    *("create", "open", "add", "append", "remove", "search", "compact", "verify", "close"),
    *("ids", "projections"),
)
#: Public modules and names of modules; of a class, the members that are (none named: all).
PUBLIC: dict[str, tuple[str, ...]] = {
    "hat_export": (),
    "hat_export.errors": (),
    "hat_export.spec:ModelSpec": (),
    "hat_export.runtime.session:Session": ("encode_images", "encode_texts", "score", "close"),
    "hat_export.score.features:ImageFeatures": (),
    "hat_export.score.features:TextFeatures": (),
    "hat_export.index.images:ImageIndex": INDEX,
    "hat_export.index.captions:CaptionIndex": INDEX,
    "hat_export.parity.outcome:ParityOutcome": ("passed", "verdict", "deltas", "changed"),
    "hat_export.parity.report:parity_report": (),
    "hat_export.report.report:Report": ("title", "summary", "data", "passed"),
    "hat_export.report.report:write_report": (),
    "hat_export.base.ray:RayWorkers": (),
}
#: Version of each format that files are written in.
FORMATS = {
    "bundle": "hat_export.bundle.bundle:FORMAT_VERSION",
    "index": "hat_export.index.record_format:FORMAT_VERSION",
    "report": "hat_export.report.report:REPORT_VERSION",
    "latency report": "hat_export.benchmark.latency.record:SCHEMA_VERSION",
    "load report": "hat_export.benchmark.load.report:SCHEMA_VERSION",
    "profile report": "hat_export.benchmark.profile.report:SCHEMA_VERSION",
}
FIXTURES = "hat_export.pytest_plugin"
PROGRAMS = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}


def lines() -> list[str]:
    """The public surface, sorted."""
    return sorted({*_python(), *_commands(), *_formats(), *_fixtures()})


def _python() -> Iterator[str]:
    for path, members in PUBLIC.items():
        module, _, name = path.partition(":")
        found = importlib.import_module(module)
        for one in [name] if name else _names(found):
            yield from _described(f"{module}.{one}", getattr(found, one), members)


def _names(module: ModuleType) -> list[str]:
    """What a module offers: ``__all__``, or what it defines itself."""
    if listed := getattr(module, "__all__", None):
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _described(path: str, value: object, wanted: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(value, type):
        assert callable(value), path
        yield f"python {path}{_parameters(value)}"
        return
    if issubclass(value, Exception):
        yield f"python {path}({value.__bases__[0].__name__})"
        return
    members = dict(_members(value))
    for name in wanted or members:
        member = members[name]
        is_method = inspect.isfunction(member) or inspect.ismethod(member)
        yield f"python {path}.{name}{_parameters(member) if is_method else ''}"


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Fields, methods and properties that the project's own classes define; the nearest last."""
    for field in getattr(owner, "__dataclass_fields__", {}):
        yield field, None
    for base in reversed(owner.__mro__):
        if base.__module__.startswith("hat_export"):
            for name, member in vars(base).items():
                if not name.startswith("_"):
                    bound = isinstance(member, (staticmethod, classmethod))
                    yield name, getattr(base, name) if bound else member


def _parameters(function: Callable[..., Any]) -> str:
    """Names of parameters; those with a default end in ``=``."""
    shown = []
    keyword = False
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and not keyword:
            shown.append("*")
            keyword = True
        shown.append(f"{one.name}{'' if one.default is one.empty else '='}")
    return f"({', '.join(shown)})"


def _commands() -> Iterator[str]:
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(importlib.import_module(module).app)
        for name, command in group.commands.items():  # type: ignore[attr-defined]
            for parameter in command.params:
                if getattr(parameter, "hidden", False):
                    continue
                for spelling in [*parameter.opts, *parameter.secondary_opts]:
                    named = spelling if spelling.startswith("-") else f"<{parameter.name}>"
                    yield f"command {program} {name} {named}"


def _formats() -> Iterator[str]:
    for name, path in FORMATS.items():
        module, _, attribute = path.partition(":")
        yield f"format {name} {getattr(importlib.import_module(module), attribute)}"


def _fixtures() -> Iterator[str]:
    plugin = importlib.import_module(FIXTURES)
    for name, value in vars(plugin).items():
        if type(value).__name__ == "FixtureFunctionDefinition":
            yield f"pytest fixture {name}"
    yield f"pytest fixture assert_parity, called with {_parameters(plugin.fail_without_parity)}"


if __name__ == "__main__":
    RECORD.write_text("\n".join(lines()) + "\n", encoding="utf-8")
