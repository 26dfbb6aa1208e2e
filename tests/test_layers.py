"""The layers of the package: imports go only upwards in the table, heavy libraries stay apart.

The sources are parsed, not imported, so that an import inside a function counts too and no library
has to be installed.
"""

import ast
import graphlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from places import ROOT

#: Source folder -> the name under which it is installed.
FOLDERS = {"hat_export": "hat_export", "kernels": "hat_export.kernels", "cli": "hat_export.cli"}

#: Top to bottom: a module may import from its own layer and from those above it. A package places
#: everything below it that isn't named itself. Explained in docs/architecture.md.
LAYERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("foundations", ("hat_export.errors", "hat_export.spec", "hat_export.base")),
    ("kernels", ("hat_export.kernels",)),
    ("data", ("hat_export.data",)),
    ("reports", ("hat_export.report",)),
    ("score", ("hat_export.score",)),
    ("bundle", ("hat_export.bundle",)),
    ("model", ("hat_export.model",)),
    ("runtime", ("hat_export.runtime",)),
    ("export", ("hat_export.export",)),
    ("index", ("hat_export.index",)),
    ("tensorrt", ("hat_export.tensorrt",)),
    ("parity", ("hat_export.parity",)),
    ("benchmark", ("hat_export.benchmark",)),
    ("quantize", ("hat_export.quantize",)),
    ("interface", ("hat_export", "hat_export.api", "hat_export.pytest_plugin")),
    ("serving", ("hat_export.serving",)),
    ("commands", ("hat_export.cli",)),
)

#: Library -> the modules (or packages) that may import it when they are imported themselves.
#: Everybody else imports it inside the function that needs it, or not at all.
OWNERS: dict[str, tuple[str, ...]] = {
    "torch": (
        "hat_export.runtime.backends.torch_backend",
        "hat_export.export",
        "hat_export.kernels.alignment_torch",
        "hat_export.model.alignment",
        "hat_export.model.checkpoint",
        "hat_export.model.hat",
        "hat_export.model.torch_file",
    ),
    "torchvision": (),
    "datasets": (),
    "transformers": ("hat_export.export", "hat_export.model.hat"),
    "timm": ("hat_export.export", "hat_export.model.hat"),
    "onnx": (
        "hat_export.runtime.backends.emulation_backend",
        "hat_export.export",
        "hat_export.quantize",
        "hat_export.parity.graphs",
        "hat_export.parity.localize",
        "hat_export.tensorrt",
    ),
    "onnxscript": ("hat_export.export",),
    "onnxslim": ("hat_export.export",),
    "onnxruntime": (
        "hat_export.runtime.backends.emulation_backend",
        "hat_export.runtime.backends.onnxruntime_backend",
        "hat_export.runtime.backends.onnxruntime_profiler",
        "hat_export.parity.localize",
    ),
    "mlperf_loadgen": (),
    "openvino": (),
    "pyarrow": (),
    "ray": (),
    "tritonclient": (),
    "tensorrt": (),
    "tensorrt_rtx": (),
    "triton": (
        "hat_export.kernels.alignment_plugin_triton",
        "hat_export.kernels.alignment_triton",
    ),
    "typer": ("hat_export.cli",),
}

#: Must not come in with `hat-export --help`, which shall answer at once.
SLOW = (*(name for name in OWNERS if name != "typer"), "PIL", "jaxtyping", "numpy", "tokenizers")

#: Imported nowhere else, not even inside a function.
EXCLUSIVE = ("typer",)


@dataclass(frozen=True)
class Import:
    """One import statement: who, what, where, and whether it runs when the module is imported."""

    importer: str
    imported: str
    where: str
    eager: bool


class _Imports(ast.NodeVisitor):
    """Collects (dotted name, line, eager) of every import in a module."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: list[tuple[str, int, bool]] = []
        self._lazy = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._lazy += 1
        self.generic_visit(node)
        self._lazy -= 1

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._lazy += 1
        self.generic_visit(node)
        self._lazy -= 1

    def visit_If(self, node: ast.If) -> None:
        # `if TYPE_CHECKING:` never runs, but it does tell which layer a module knows.
        typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
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
            parts = self.package.split(".")
            parts = parts[: len(parts) - node.level + 1]
            base = ".".join([*parts, base] if base else parts)
        # `from a import b` may name the module a.b: the caller looks which of them exists.
        names = (f"{base}.{alias.name}" for alias in node.names)
        self.found.extend((name, node.lineno, self._lazy == 0) for name in names)


def source_modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package by its installed name."""
    modules = {}
    for folder, package in FOLDERS.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            modules[".".join((package, *parts))] = path
    return modules


def read_imports(modules: dict[str, Path]) -> list[Import]:
    """All imports of the modules; a name imported from one of them counts as that module."""
    packages = {name for name, path in modules.items() if path.name == "__init__.py"}
    known = set(modules) | set(FOLDERS.values())
    imports = []
    for importer, path in modules.items():
        visitor = _Imports(importer if importer in packages else importer.rpartition(".")[0])
        visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for name, line, eager in visitor.found:
            imported = name
            if name.split(".")[0] == "hat_export" and name not in known:
                imported = name.rpartition(".")[0]
            imports.append(Import(importer, imported, f"{path.name}:{line}", eager))
    return imports


def owner(name: str, places: tuple[str, ...]) -> str | None:
    """The longest of `places` that is the module or a package around it."""
    around = [place for place in places if name == place or name.startswith(place + ".")]
    return max(around, key=len, default=None)


def layer(name: str) -> int | None:
    """The position of a module in LAYERS, or None where it isn't placed."""
    places = {place: position for position, (_, names) in enumerate(LAYERS) for place in names}
    # "hat_export" places only the package's own __init__.py; new modules have to be entered.
    place = owner(name, tuple(place for place in places if place != "hat_export"))
    if place is not None:
        return places[place]
    return places[name] if name == "hat_export" else None


def unplaced(modules: dict[str, Path]) -> list[str]:
    return [name for name in modules if layer(name) is None]


def downward(imports: list[Import]) -> list[str]:
    """Imports of a lower layer, as lines to show."""
    lines = []
    for entry in imports:
        here, there = layer(entry.importer), layer(entry.imported)
        if here is not None and there is not None and there > here:
            lines.append(
                f"{entry.where}: {entry.importer} (layer '{LAYERS[here][0]}') imports "
                f"{entry.imported} (lower layer '{LAYERS[there][0]}')"
            )
    return lines


def misplaced(imports: list[Import]) -> list[str]:
    """Imports of a heavy library outside the modules that own it, as lines to show."""
    lines = []
    for entry in imports:
        library = entry.imported.split(".")[0]
        if library not in OWNERS or owner(entry.importer, OWNERS[library]) is not None:
            continue
        if entry.eager:
            lines.append(
                f"{entry.where}: {entry.importer} imports {library} when it is imported itself"
            )
        elif library in EXCLUSIVE:
            lines.append(f"{entry.where}: {entry.importer} imports {library}")
    return lines


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


MODULES = source_modules()
IMPORTS = read_imports(MODULES)


def test_sources_are_found() -> None:
    assert "hat_export.spec" in MODULES
    assert "hat_export.model.hat" in MODULES
    assert "hat_export.cli.export" in MODULES
    assert any(entry.imported == "torch" for entry in IMPORTS)


def test_every_module_has_a_layer() -> None:
    missing = unplaced(MODULES)
    assert not missing, f"enter these in LAYERS of {Path(__file__).name}: {', '.join(missing)}"


def test_imports_go_upwards() -> None:
    assert not downward(IMPORTS), "\n".join(
        [
            *downward(IMPORTS),
            f"move the code, or the module's place in LAYERS of {Path(__file__).name}",
        ]
    )


def test_modules_of_a_layer_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for entry in IMPORTS:
        if entry.eager and entry.imported in MODULES and entry.imported != entry.importer:
            graph[entry.importer].add(entry.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


def test_heavy_libraries_stay_with_their_owners() -> None:
    assert not misplaced(IMPORTS), "\n".join(
        [
            *misplaced(IMPORTS),
            f"import it inside the function that needs it, or see OWNERS in {Path(__file__).name}",
        ]
    )


@pytest.mark.parametrize("library", [name for name in OWNERS if name != "typer"])
def test_light_modules_do_not_bring_in_heavy_libraries(library: str) -> None:
    """What a bundle needs to run, and the commands, import without the libraries of the export."""
    heavy = tuple({place for places in OWNERS.values() for place in places} - {"hat_export.cli"})
    for name in MODULES:
        if owner(name, heavy) is None and not name.endswith("__main__"):
            came = eager_closure(IMPORTS, name)
            assert library not in {part.split(".")[0] for part in came}, (
                f"`import {name}` brings in {library} through one of "
                f"{sorted(part for part in came if owner(part, heavy))}"
            )


@pytest.mark.parametrize("command", ["hat_export.cli.export", "hat_export.cli.bench"])
def test_the_help_of_a_command_waits_for_no_library(command: str) -> None:
    came = {name.split(".")[0] for name in eager_closure(IMPORTS, command)}
    assert not came & set(SLOW), f"`import {command}` brings in {sorted(came & set(SLOW))}"


def write_package(root: Path, files: dict[str, str]) -> list[Import]:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return read_imports(source_modules(root))


def test_a_downward_import_is_seen_even_inside_a_function(tmp_path: Path) -> None:
    imports = write_package(
        tmp_path,
        {
            "hat_export/__init__.py": "",
            "hat_export/api.py": "",
            "hat_export/spec.py": "def f():\n    from hat_export import api\n",
        },
    )
    assert downward(imports) == [
        "spec.py:2: hat_export.spec (layer 'foundations') imports hat_export.api "
        "(lower layer 'interface')"
    ]


def test_relative_and_mapped_imports_are_resolved(tmp_path: Path) -> None:
    imports = write_package(
        tmp_path,
        {
            "hat_export/__init__.py": "",
            "hat_export/spec.py": "",
            "hat_export/model/__init__.py": "from ..spec import ModelSpec\n",
            "kernels/align.py": "from hat_export.model import x\n",
        },
    )
    found = [(entry.importer, entry.imported) for entry in imports]
    assert ("hat_export.model", "hat_export.spec") in found
    assert [line.split(":")[0] for line in downward(imports)] == ["align.py"]


def test_an_eager_heavy_import_is_seen_and_a_lazy_one_allowed(tmp_path: Path) -> None:
    imports = write_package(
        tmp_path,
        {
            "hat_export/__init__.py": "",
            "hat_export/bundle/bundle.py": "import torch.nn\ndef f():\n    import torch\n",
            "hat_export/runtime/session.py": "def f():\n    import typer\n",
        },
    )
    assert [line.split(": ")[0] for line in misplaced(imports)] == ["bundle.py:1", "session.py:2"]


def test_a_new_module_has_to_be_placed(tmp_path: Path) -> None:
    write_package(tmp_path, {"hat_export/__init__.py": "", "hat_export/novelty.py": ""})
    assert unplaced(source_modules(tmp_path)) == ["hat_export.novelty"]


def test_no_module_takes_the_name_of_a_public_function() -> None:
    """``import hat_export.load`` would replace the function ``hat_export.load`` by the module."""
    import hat_export

    assert hat_export.__all__
    assert not {f"hat_export.{name}" for name in hat_export.__all__} & set(MODULES)
