"""Counts rooms, floors and import arrows of the package, and holds the counts against their limits.

    python bench/structure.py                # of this checkout
    python bench/structure.py --root DIR     # of another one
    python bench/structure.py --arrows       # also who imports what, by module and line
    python bench/structure.py --check        # exit status 1 if a limit is exceeded
    python bench/structure.py --json

What these are says ``rooms.py``. The sources are parsed; nothing of the project is imported.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from rooms import read_house, read_layers, upward_arrows  # noqa: E402
from source_imports import FOLDERS, PACKAGE, source_modules  # noqa: E402

#: What a count may be at most.
LIMITS = {
    "rooms": 30,
    "floors": 10,
    "arrows": 170,
    "upward arrows": 0,
    "imports by a string that can't be read": 0,
    "modules in the package's root": 10,
    "lines of the largest module": 500,
    "lines of the median module": 200,
    "words of README": 900,
    "public functions with more than 8 parameters": 0,
    "rows of the layer table": 18,
}
MOST_PARAMETERS = 8

#: How the name of an options object's class ends. One such parameter of a function doesn't count.
OPTIONS = ("Options", "Settings", "Request")

#: Where the limits of lines hold, and for which files.
MEASURED = (*FOLDERS, "bench")
SOURCES = frozenset({".py", ".cpp", ".h", ".hpp"})


def count_lines(root: Path) -> dict[str, int]:
    """Lines of each source module, native ones too, by its path in the checkout."""
    return {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines())
        for folder in MEASURED
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in SOURCES and path.is_file()
    }


def _functions(body: list[ast.stmt]) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Public functions and methods of a module or class, with their qualified names."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _functions(node.body)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for name, function in _functions(node.body):
                yield f"{node.name}.{name}", function
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (
            node.name == "__init__" or not node.name.startswith("_")
        ):
            yield node.name, node


def count_parameters(function: ast.FunctionDef) -> int:
    """Parameters that a caller sees, but for one options object."""
    given = function.args
    several = [star for star in (given.vararg, given.kwarg) if star is not None]
    parameters = [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
    if parameters and parameters[0].arg in ("self", "cls"):
        del parameters[0]
    options = any(
        isinstance(part, ast.Name | ast.Attribute)
        and ast.unparse(part).split(".")[-1].endswith(OPTIONS)
        for parameter in parameters
        if parameter.annotation is not None
        for part in ast.walk(parameter.annotation)
    )
    return len(parameters) - options


def long_signatures(modules: Mapping[str, Path]) -> dict[str, int]:
    """Public functions with too many parameters, as ``module:line name``, and how many."""
    found = {}
    for module, path in modules.items():
        if any(part.startswith("_") and part != "__main__" for part in module.split(".")):
            continue
        for name, function in _functions(ast.parse(path.read_text(encoding="utf-8")).body):
            if (number := count_parameters(function)) > MOST_PARAMETERS:
                found[f"{module}:{function.lineno} {name}"] = number
    return found


def describe(root: Path) -> dict[str, Any]:
    """Everything that the script prints, as JSON: the counts under the names of `LIMITS`."""
    house = read_house(root)
    layers = read_layers(root)
    upward = upward_arrows(house, layers)
    lines = count_lines(root)
    signatures = long_signatures(source_modules(root))
    readme = root / "README.md"
    in_root = [path for path in (root / PACKAGE).glob("*.py") if path.name != "__init__.py"]
    counts = {
        "rooms": len(house.rooms),
        "floors": max(house.floors.values(), default=0),
        "arrows": len(house.arrows),
        "upward arrows": len(upward),
        "imports by a string that can't be read": len(house.unreadable),
        "modules in the package's root": len(in_root),
        "lines of the largest module": max(lines.values(), default=0),
        "lines of the median module": round(statistics.median(lines.values() or [0])),
        "words of README": len(readme.read_text(encoding="utf-8").split())
        if readme.exists()
        else 0,
        "public functions with more than 8 parameters": len(signatures),
        "rows of the layer table": len(layers),
    }
    imports = {
        arrow: sorted({f"{e.importer}:{e.where.rpartition(':')[2]} {e.imported}" for e in entries})
        for arrow, entries in house.arrows.items()
    }
    largest = sorted(lines, key=lambda path: (-lines[path], path))
    return {
        "counts": counts,
        "exceeded": [name for name, limit in LIMITS.items() if counts[name] > limit],
        "floors": {
            number: [room for room in house.rooms if house.floors[room] == number]
            for number in sorted(set(house.floors.values()))
        },
        "longest way down": house.longest_way_down() if house.rooms else [],
        "cycles": house.cycles,
        "upward": {" -> ".join(arrow): imports[arrow] for arrow in upward},
        "unreadable": house.unreadable,
        "large modules": {
            path: lines[path]
            for path in largest
            if lines[path] > LIMITS["lines of the largest module"]
        },
        "long signatures": signatures,
        "arrows": {" -> ".join(arrow): imports[arrow] for arrow in sorted(imports)},
    }


def _short(text: str) -> str:
    return text.replace(f"{PACKAGE}.", "")


def show(found: dict[str, Any], with_arrows: bool) -> Iterator[str]:
    """The lines that the script prints."""
    counts: dict[str, int] = found["counts"]
    for name, count in counts.items():
        mark = "  EXCEEDED" if name in found["exceeded"] else ""
        yield f"{name:<46} {count:>5}  at most {LIMITS[name]:>3}{mark}"
    yield "\nfloors, highest first"
    floors: dict[int, list[str]] = found["floors"]
    for number in reversed(floors):
        yield f"{number:>3}  {' '.join(map(_short, floors[number]))}"
    yield f"\nlongest way down: {' > '.join(map(_short, found['longest way down']))}"
    for cycle in found["cycles"]:
        yield f"cycle: {' '.join(map(_short, cycle))}"
    parts = ["upward", "unreadable", "large modules", "long signatures"]
    for title in [*parts, "arrows"] if with_arrows else parts:
        details = found[title]
        if not details:
            continue
        yield f"\n{title}"
        if isinstance(details, list):
            yield from (f"  {_short(line)}" for line in details)
            continue
        for name, detail in details.items():
            if isinstance(detail, int):
                yield f"  {detail:>4}  {_short(name)}"
            else:
                yield f"  {_short(name)}"
                yield from (f"      {_short(line)}" for line in detail)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=HERE.parent, help="checkout to look at")
    parser.add_argument("--arrows", action="store_true", help="list every arrow's imports")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--check", action="store_true", help="exit status 1 beyond a limit")
    arguments = parser.parse_args()
    if not (arguments.root / PACKAGE).is_dir():
        parser.error(f"{arguments.root}: no folder {PACKAGE}/ in it; name a checkout")
    found = describe(arguments.root)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        print("\n".join(show(found, arguments.arrows)))
    return int(arguments.check and bool(found["exceeded"]))


if __name__ == "__main__":
    sys.exit(main())
