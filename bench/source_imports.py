"""Who imports whom, read from the sources: nothing is imported, no library has to be installed.

An import counts wherever it stands: at the top of a module, inside a function, under
``TYPE_CHECKING``, and as the name of a module in a string (a table for ``importlib``, an argument
after ``python -m``). A string that only begins such a name can't be read, and is listed instead.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

#: Source folder -> the name under which it is installed.
FOLDERS = {"hat_export": "hat_export", "kernels": "hat_export.kernels", "cli": "hat_export.cli"}
PACKAGE = "hat_export"

#: Calls that import what a string names.
IMPORTERS = frozenset({"import_module", "__import__", "run_module"})


@dataclass(frozen=True)
class Import:
    """One import: who, what, where, and whether it runs when the module is imported."""

    importer: str
    imported: str
    where: str
    eager: bool


@dataclass(frozen=True)
class Imports:
    """What all modules import, and what can't be told.

    Attributes:
        entries: Every import of every module.
        unreadable: Places where the name of a module is put together, as ``module:line``.
    """

    entries: list[Import]
    unreadable: list[str]


class _Visitor(ast.NodeVisitor):
    """Collects (dotted name, line, eager) of every import in a module."""

    def __init__(self, package: str, known: frozenset[str]) -> None:
        self.package = package
        self.known = known
        self.found: list[tuple[str, int, bool]] = []
        self.unreadable: set[int] = set()
        self._lazy = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._visit_lazily(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._visit_lazily(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_lazily(node)

    def _visit_lazily(self, node: ast.AST) -> None:
        self._lazy += 1
        self.generic_visit(node)
        self._lazy -= 1

    def visit_If(self, node: ast.If) -> None:
        # `if TYPE_CHECKING:` never runs, but it does tell which module knows which.
        typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
        self.visit(node.test)
        self._lazy += typing_only
        for statement in node.body:
            self.visit(statement)
        self._lazy -= typing_only
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        self.found.extend((alias.name, node.lineno, self._lazy == 0) for alias in node.names)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            base = self._absolute("." * node.level + base)
        # `from a import b` may name the module a.b: the caller looks which of them exists.
        names = (f"{base}.{alias.name}" for alias in node.names)
        self.found.extend((name, node.lineno, self._lazy == 0) for name in names)

    def visit_Constant(self, node: ast.Constant) -> None:
        if not isinstance(node.value, str):
            return
        # The package's own name is also that of operator domains and folders: no import.
        if node.value in self.known and node.value != PACKAGE:
            self.found.append((node.value, node.lineno, False))
        elif re.fullmatch(rf"{PACKAGE}\.[\w.]*[%{{]\S*", node.value):
            self.unreadable.add(node.lineno)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._note_unreadable(node, node.values)
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        if isinstance(node.op, ast.Add):
            self._note_unreadable(node, [node.left])
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        if name in IMPORTERS and node.args:
            argument = node.args[0]
            if isinstance(argument, ast.Constant) and str(argument.value).startswith("."):
                self.found.append((self._absolute(str(argument.value)), node.lineno, False))
            elif _is_computed(argument):
                self.unreadable.add(node.lineno)
        self.generic_visit(node)

    def _note_unreadable(self, node: ast.expr, parts: list[ast.expr]) -> None:
        """Note a string that begins with the name of the package and goes on with a value."""
        first = parts[0] if parts else None
        if isinstance(first, ast.Constant) and re.fullmatch(
            rf"{PACKAGE}(\.\w+)*\.\w*", str(first.value)
        ):
            self.unreadable.add(node.lineno)

    def _absolute(self, relative: str) -> str:
        name = relative.lstrip(".")
        parts = self.package.split(".")
        parts = parts[: len(parts) - (len(relative) - len(name)) + 1]
        return ".".join([*parts, name] if name else parts)


def _is_computed(name: ast.expr) -> bool:
    """Whether the name of a module is put together, other than from that of a module at hand."""
    first = name.values[0] if isinstance(name, ast.JoinedStr) and name.values else None
    if isinstance(first, ast.FormattedValue):
        return not (isinstance(first.value, ast.Attribute) and first.value.attr == "__name__")
    return isinstance(name, ast.JoinedStr | ast.BinOp | ast.Call)


def source_modules(root: Path) -> dict[str, Path]:
    """Every module of the package by its installed name."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            modules[".".join((package, *parts))] = path
    return modules


def folders_of(modules: dict[str, Path]) -> set[str]:
    """Dotted names of the folders that hold modules, with or without an ``__init__.py``."""
    return {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in modules.items()
    }


def read_imports(modules: dict[str, Path]) -> Imports:
    """All imports of the modules; a name imported from one of them counts as that module."""
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    known = frozenset(modules) | folders_of(modules) | set(FOLDERS.values())
    imports = Imports([], [])
    for importer, path in modules.items():
        visitor = _Visitor(importer if importer in packages else importer.rpartition(".")[0], known)
        visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for name, line, eager in visitor.found:
            imported = name
            if name.split(".")[0] == PACKAGE and name not in known:
                imported = name.rpartition(".")[0]
            imports.entries.append(Import(importer, imported, f"{path.name}:{line}", eager))
        imports.unreadable.extend(f"{importer}:{line}" for line in sorted(visitor.unreadable))
    return imports


def eager_closure(imports: list[Import], start: str) -> set[str]:
    """Everything that comes in with `import start`: modules of ours, and libraries."""
    graph: dict[str, set[str]] = {}
    for entry in imports:
        if entry.eager:
            graph.setdefault(entry.importer, set()).add(entry.imported)
    seen: set[str] = set()
    waiting = {start}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        # Importing a.b.c runs a and a.b first.
        parts = name.split(".")
        waiting |= {".".join(parts[:length]) for length in range(1, len(parts))}
        waiting |= graph.get(name, set())
    return seen
