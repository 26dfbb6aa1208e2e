"""Rooms, floors and arrows are counted right, and each limit can be exceeded."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from places import BENCH, ROOT, on_path

with on_path(BENCH):
    import rooms
    import structure
    from source_imports import read_imports, source_modules


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"hat_export/__init__.py": "", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def arrows(root: Path) -> set[tuple[str, str]]:
    short = (
        tuple(room.removeprefix("hat_export.") for room in a) for a in rooms.read_house(root).arrows
    )
    return set(short)


def test_rooms_are_folders_and_modules_of_the_root(tmp_path: Path) -> None:
    files = dict.fromkeys(
        ("hat_export/spec.py", "hat_export/score/a.py", "hat_export/score/b.py",
         "hat_export/score/plots/c.py", "kernels/k.py", "kernels/native/k.cpp",
         "cli/common.py", "cli/export/onnx.py"),
        "",
    )  # fmt: skip
    assert rooms.read_house(write(tmp_path, files)).rooms == (
        "hat_export",
        "hat_export.cli",
        "hat_export.cli.export",
        "hat_export.kernels",
        "hat_export.score",
        "hat_export.score.plots",
        "hat_export.spec",
    )


@pytest.mark.parametrize(
    "text",
    [
        "from hat_export.low.a import x",
        "import hat_export.low.a",
        "from hat_export import low",
        "from ..low import a",
        "def f():\n    from hat_export.low import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import hat_export.low",
        "TABLE = {'a': 'hat_export.low.a'}",
        "import importlib\nimportlib.import_module('..low.a', 'hat_export.high')",
        "async def f():\n    __import__('hat_export.low')",
    ],
)
def test_an_import_is_seen_wherever_it_stands(tmp_path: Path, text: str) -> None:
    files = {
        "hat_export/low/a.py": "",
        "hat_export/high/__init__.py": "",
        "hat_export/high/b.py": text,
    }
    assert arrows(write(tmp_path, files)) == {("high", "low")}


def test_only_an_import_that_runs_when_the_module_is_imported_is_eager(tmp_path: Path) -> None:
    text = (
        "import first\n"
        "if TYPE_CHECKING:\n    import typing_only\nelse:\n    import second\n"
        "def f():\n    import lazy\n"
        "class A:\n    import third\n"
        "name = 'hat_export.low'\n"
    )
    write(tmp_path, {"hat_export/low/a.py": "", "hat_export/high.py": text})
    entries = read_imports(source_modules(tmp_path)).entries
    assert [entry.imported for entry in entries if entry.eager] == ["first", "second", "third"]
    assert {entry.imported for entry in entries if not entry.eager} == {
        "hat_export.low",
        "lazy",
        "typing_only",
    }


@pytest.mark.parametrize(
    "text",
    [
        "name = f'hat_export.{x}'",
        "name = 'hat_export.low.' + x",
        "name = 'hat_export.%s' % x",
        "name = 'hat_export.low.{}'.format(x)",
        "import importlib\nimportlib.import_module(f'{PACKAGE}.low')",
        "import importlib\nimportlib.import_module(__package__ + '.low')",
    ],
)
def test_an_import_by_a_string_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path, {"hat_export/low/a.py": "", "hat_export/high.py": text})
    unreadable = rooms.read_house(tmp_path).unreadable
    assert unreadable == [f"hat_export.high:{len(text.splitlines())}"]


def test_submodules_of_libraries_and_other_texts_are_no_imports(tmp_path: Path) -> None:
    text = (
        "import importlib\n"
        "importlib.import_module(f'{library.__name__}.plugin')\n"
        "metadata = {'hat_export.graph': 'hat_export'}\n"
        "'uses hat_export.low.a for it'\n"
    )
    house = rooms.read_house(
        write(tmp_path, {"hat_export/low/a.py": "", "hat_export/high.py": text})
    )
    assert house.unreadable == []
    assert house.arrows == {}


def test_floors_are_steps_of_the_longest_way(tmp_path: Path) -> None:
    files = {
        "hat_export/top.py": "from hat_export import low, middle",
        "hat_export/middle.py": "from hat_export import low",
        "hat_export/low.py": "",
        "hat_export/aside.py": "from hat_export import low",
    }
    house = rooms.read_house(write(tmp_path, files))
    assert house.floors == {
        "hat_export": 1,
        "hat_export.aside": 2,
        "hat_export.low": 1,
        "hat_export.middle": 2,
        "hat_export.top": 3,
    }
    assert house.longest_way_down() == ["hat_export.top", "hat_export.middle", "hat_export.low"]


def test_a_cycle_shares_one_floor_and_the_way_goes_on_through_it(tmp_path: Path) -> None:
    files = {
        "hat_export/top.py": "from hat_export import b",
        "hat_export/a.py": "from hat_export import b, low",
        "hat_export/b.py": "def f():\n    from hat_export import a",
        "hat_export/low.py": "",
    }
    house = rooms.read_house(write(tmp_path, files))
    assert house.cycles == [("hat_export.a", "hat_export.b")]
    assert [house.floors[f"hat_export.{name}"] for name in ("top", "a", "b", "low")] == [3, 2, 2, 1]
    assert house.longest_way_down() == ["hat_export.top", "hat_export.b", "hat_export.low"]
    # Without a table nobody can say which of the two is wrong.
    assert len(rooms.upward_arrows(house, ())) == 2
    table = (("low", ("hat_export.a", "hat_export.low")), ("high", ("hat_export.b",)))
    assert rooms.upward_arrows(house, table) == [("hat_export.a", "hat_export.b")]


def test_an_arrow_against_the_layer_table_goes_upward_without_a_cycle(tmp_path: Path) -> None:
    house = rooms.read_house(
        write(tmp_path, {"hat_export/a.py": "import hat_export.b", "hat_export/b.py": ""})
    )
    table = (("low", ("hat_export.a",)), ("high", ("hat_export.b",)))
    assert rooms.upward_arrows(house, table) == [("hat_export.a", "hat_export.b")]
    assert rooms.upward_arrows(house, tuple(reversed(table))) == []


@pytest.mark.parametrize(
    ("signature", "number"),
    [
        ("a, b, /, c, *rest, d=1, **named", 6),
        ("self, a", 1),
        ("a, settings: ParitySettings", 1),
        ("a, options: 'x.Options | None', more: x.Options", 2),
        ("a: int, backend: BackendOption", 2),
    ],
)
def test_parameters_are_counted_but_for_one_options_object(signature: str, number: int) -> None:
    function = ast.parse(f"def f({signature}): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert structure.count_parameters(function) == number


def test_long_signatures_are_those_of_public_functions(tmp_path: Path) -> None:
    nine = ", ".join("abcdefghi")
    text = (
        f"def long({nine}): ...\n"
        f"def _hidden({nine}): ...\n"
        f"class Shown:\n    def __init__(self, {nine}): ...\n"
        f"    async def verb(self, {nine}): ...\n"
        f"class _Hidden:\n    def verb(self, {nine}): ...\n"
        f"def outer():\n    def inner({nine}): ...\n"
        f"def eight({nine[:-3]}): ...\n"
    )
    write(tmp_path, {"hat_export/a.py": text, "hat_export/_private.py": f"def long({nine}): ..."})
    assert structure.long_signatures(source_modules(tmp_path)) == {
        "hat_export.a:1 long": 9,
        "hat_export.a:4 Shown.__init__": 9,
        "hat_export.a:5 Shown.verb": 9,
    }


def many(count: int) -> dict[str, str]:
    return {f"hat_export/p{number}/__init__.py": "" for number in range(count)}


def chain(count: int) -> dict[str, str]:
    files = many(count)
    for number in range(1, count):
        files[f"hat_export/p{number}/__init__.py"] = f"import hat_export.p{number - 1}"
    return files


def dense(count: int) -> dict[str, str]:
    """Every room of the upper half imports every one of the lower."""
    files = many(count)
    below = ", ".join(f"p{number}" for number in range(count // 2))
    for number in range(count // 2, count):
        files[f"hat_export/p{number}/__init__.py"] = f"from hat_export import {below}"
    return files


TABLE = (
    "LAYERS: tuple = (\n"
    + "".join(f"    ('r{n}', ('hat_export.r{n}',)),\n" for n in range(19))
    + ")"
)

EXCEEDING = {
    "rooms": many(30),
    "floors": chain(11),
    "arrows": dense(28),
    "upward arrows": {
        "hat_export/a.py": "import hat_export.b",
        "hat_export/b.py": "import hat_export.a",
    },
    "imports by a string that can't be read": {"hat_export/a.py": "x = f'hat_export.{y}'"},
    "modules in the package's root": {f"hat_export/m{number}.py": "" for number in range(11)},
    "lines of the largest module": {
        "kernels/k.cpp": "\n" * 501,
        "bench/a.py": "",
        "bench/b.py": "",
    },
    "lines of the median module": dict.fromkeys(("hat_export/__init__.py", "cli/a.py"), "\n" * 201),
    "words of README": {"README.md": "word " * 901},
    "public functions with more than 8 parameters": {
        "cli/a.py": "def f(a, b, c, d, e, f, g, h, i): ..."
    },
    "rows of the layer table": {"tests/layers/test_layers.py": TABLE},
}


def test_every_limit_has_its_case() -> None:
    assert list(EXCEEDING) == list(structure.LIMITS)


@pytest.mark.parametrize("limit", EXCEEDING)
def test_a_limit_that_is_exceeded_fails_the_check(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["structure.py", "--root", str(tmp_path), *options])
        return structure.main()

    write(tmp_path, {})
    assert run("--check") == 0
    write(tmp_path, EXCEEDING[limit])
    assert run() == 0
    capsys.readouterr()
    assert run("--check") == 1
    shown = [line for line in capsys.readouterr().out.splitlines() if "EXCEEDED" in line]
    assert len(shown) == 1
    assert shown[0].startswith(limit)
    assert run("--check", "--json") == 1
    assert json.loads(capsys.readouterr().out)["exceeded"] == [limit]


def test_the_layer_table_is_read_from_its_test() -> None:
    layers = rooms.read_layers(ROOT)
    assert rooms.layer("hat_export.errors", layers) == 0
    assert rooms.layer("hat_export.cli.export", layers) == len(layers) - 1


def test_a_folder_without_the_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["structure.py", "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        structure.main()
    assert "no folder hat_export/" in capsys.readouterr().err


def test_imports_of_this_checkout_are_all_readable() -> None:
    assert read_imports(source_modules(ROOT)).unreadable == []
