"""The layers of the package: imports go only upwards in the table, heavy libraries stay apart.

The sources are parsed, not imported, so that an import inside a function counts too and no library
has to be installed.
"""

import ast
import graphlib
from pathlib import Path

import pytest

from places import BENCH, ROOT, on_path

with on_path(BENCH):
    from rooms import layer, owner
    from source_imports import Import, eager_closure, read_imports, source_modules

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
    "onnxruntime": (
        "hat_export.runtime.backends.emulation_backend",
        "hat_export.runtime.backends.onnxruntime_backend",
        "hat_export.runtime.backends.onnxruntime_profiler",
        "hat_export.parity.localize",
    ),
    "jinja2": (),
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


def unplaced(modules: dict[str, Path]) -> list[str]:
    return [name for name in modules if layer(name, LAYERS) is None]


def downward(imports: list[Import]) -> list[str]:
    """Imports of a lower layer, as lines to show."""
    lines = []
    for entry in imports:
        here, there = layer(entry.importer, LAYERS), layer(entry.imported, LAYERS)
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


MODULES = source_modules(ROOT)
IMPORTS = read_imports(MODULES).entries


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
    return read_imports(source_modules(root)).entries


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


#: Functions that may have a module's name: `hat_export.load` is the public one.
NAMESAKES = {
    "hat_export.runtime.backends.opening.load",
    "hat_export.kernels.alignment_cpu.score",
    "hat_export.kernels.alignment_torch.score",
}


def test_no_function_has_the_name_of_a_module_or_package() -> None:
    """``from hat_export.parity import parity`` shall not leave open which of the two it is."""
    taken = {part for name in MODULES for part in name.split(".")}
    namesakes = {
        f"{module}.{node.name}"
        for module, path in MODULES.items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in taken
    }
    assert namesakes <= NAMESAKES, "rename the function"
