"""Follows commands through the rooms of the package: rooms entered, returns and climbs.

    python bench/way.py                            # of this checkout, all commands
    python bench/way.py parity "search --image"    # some of them
    python bench/way.py -v                         # also every call between rooms
    python bench/way.py --json
    python bench/way.py --check                    # exit status 1 if a limit is exceeded
    DIR/.venv/bin/python bench/way.py --root DIR   # of another checkout, by its own interpreter

Each command runs in a process of its own on the demo model and data, and its calls are traced (what
belongs to which room: ``call_tracer.py``; rooms and floors: ``rooms.py``). What is counted:

* A **step** is the first call from one room to another. Later calls between the same two rooms are
  none, so that loops over images, batches and layers don't multiply; returns of calls are none
  either, they lead back to where the way came from. The steps in order are the **way**.
* **entered**: different rooms on the way, that of the command itself among them.
* **returns**: steps into a room that had been entered before, from another one.
* **climbs**: pairs of functions of which one calls the other on a higher floor; all of them, not
  only the first between two rooms.
* **calls**: pairs of functions in different rooms of which one calls the other.

Processes that a command starts aren't followed. Errors, data classes with code of their own and
helpers count as everything does.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from call_tracer import NOBODY, Call, Tracer  # noqa: E402
from rooms import House, read_house, room_of  # noqa: E402
from source_imports import PACKAGE, folders_of, source_modules  # noqa: E402

#: Command -> program and arguments. Of options that are joined by a bar the checkout knows one.
COMMANDS: dict[str, tuple[str, ...]] = {
    "onnx": tuple("hat-export onnx {model} {out} --threads 1".split()),
    "search --image": tuple("hat-export search {captions} --image {image} --threads 1".split()),
    "parity": (
        *"hat-bench parity {model} {bundle} --data {data} --threads 1".split(),
        *"--limit|--image-count 8 --report {out}.html --report {out}.json".split(),
    ),
    "quantize": (
        *"hat-export quantize {bundle} {out} --mode int8-weights --threads 1".split(),
        *"--compensate --calibration {data}".split(),
        *"--calibration-images|--calibration-image-count 8".split(),
    ),
}

#: What the commands above need, made untraced: name -> program and arguments.
NEEDED: dict[str, tuple[str, ...]] = {
    "bundle": tuple("hat-export onnx {model} {bundle} --threads 1 -q".split()),
    "captions": tuple("hat-export index {bundle} {texts} {captions} --captions -q".split()),
}

#: Returns that a command's way may have at most. No way may climb.
MOST_RETURNS = {"onnx": 6, "search --image": 9, "parity": 20, "quantize": 7}

#: How a process of this script is told to run one command.
WORK = "--work"


@dataclass(frozen=True)
class Way:
    """A command's way through the rooms.

    Attributes:
        steps: The first call from each room to each other one, in order.
        climbs: Calls of a higher floor.
        calls: All calls between rooms, each pair of functions once.
    """

    steps: tuple[Call, ...]
    climbs: tuple[Call, ...]
    calls: tuple[Call, ...]

    @property
    def rooms(self) -> tuple[str, ...]:
        """Rooms in the order in which they were entered first."""
        return tuple(dict.fromkeys(step.called for step in self.steps))

    @property
    def returns(self) -> tuple[Call, ...]:
        """Steps into rooms that had been entered before."""
        firsts = {step.called: step for step in reversed(self.steps)}
        return tuple(step for step in self.steps if step is not firsts[step.called])


def way_of(calls: Iterable[Call], floors: Mapping[str, int]) -> Way:
    """The way that calls make, each pair of functions given once and in order."""
    given = tuple(calls)
    steps: dict[tuple[str, str], Call] = {}
    for call in given:
        steps.setdefault((call.caller, call.called), call)
    climbs = (c for c in given if c.caller != NOBODY and floors[c.called] > floors[c.caller])
    return Way(tuple(steps.values()), tuple(climbs), given)


def beyond(name: str, way: Way) -> bool:
    """Whether a command's way exceeds its limits."""
    return bool(way.climbs) or len(way.returns) > MOST_RETURNS[name]


def source_files(root: Path) -> dict[str, tuple[str, str]]:
    """Source file -> its room and its module."""
    modules = source_modules(root)
    folders = folders_of(modules)
    return {str(path): (room_of(name, folders), name) for name, path in modules.items()}


def entry_point(root: Path, program: str) -> str:
    """The module whose ``main`` is a console script."""
    scripts = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    return str(scripts[program]).partition(":")[0]


def spell(arguments: Iterable[str], known: set[str]) -> list[str]:
    """Arguments with the options that a command knows.

    Raises:
        SystemExit: if it knows none of an option's spellings.
    """
    spelled = []
    for argument in arguments:
        options = argument.split("|") if argument.startswith("-") else [argument]
        usable = [option for option in options if option in known or not option.startswith("-")]
        if not usable:
            sys.exit(f"error: no option {argument} here; enter its name in COMMANDS of way.py")
        spelled.append(usable[0])
    return spelled


def work(root: Path, traced: str, program: str, *arguments: str) -> None:
    """Run one command in this process; given a file, trace it and write its calls there.

    Raises:
        SystemExit: if another checkout's package is installed here.
    """
    # Modules here such as `search` must not stand before those of a library.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != HERE]
    module = importlib.import_module(entry_point(root, program))
    package = Path(str(sys.modules[PACKAGE].__file__)).parent
    if package.resolve().parent != root:
        sys.exit(f"error: {sys.executable} has {package}; run this by the interpreter of {root}")
    typer: Any = importlib.import_module("typer.main")
    parameters = typer.get_command(module.app).commands[arguments[0]].params
    known = {name for one in parameters for name in (*one.opts, *one.secondary_opts)}
    sys.argv = [program, *spell(arguments, known)]
    if not traced:
        module.main()
        return
    tracer = Tracer(source_files(root))
    try:
        tracer.run(module.main)
    finally:
        calls = [asdict(call) for call in tracer.calls.values()]
        Path(traced).write_text(json.dumps(calls), "utf-8")


class Runner:
    """Runs commands of a checkout on its demo model and data, each in a process of its own."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = folder
        demo = root / "demo"
        self.places = {"model": demo / "hat-tiny-emojicap", "data": demo / "emojicap"}
        for name in ("bundle", "captions", "texts", "image"):
            self.places[name] = folder / name
        with zipfile.ZipFile(self.places["data"] / "images_test.zip") as images:
            name = min(name for name in images.namelist() if name.endswith(".png"))
            self.places["image"].write_bytes(images.read(name))
        self.places["texts"].write_text("a red heart\na smiling face\na green tree\n", "utf-8")

    def follow(self, name: str, house: House) -> Way:
        """The way of a command, and of nothing that it needs."""
        self.places["out"] = self.folder / f"out of {name}"
        traced = self.folder / "calls.json"
        self._run(COMMANDS[name], traced)
        if name == "onnx" and not self.places["bundle"].exists():
            self.places["out"].rename(self.places["bundle"])
        calls = [Call(**call) for call in json.loads(traced.read_text("utf-8"))]
        return way_of(calls, house.floors)

    def _run(self, line: tuple[str, ...], traced: Path | None = None, makes: str = "") -> None:
        """Run a command line after what it needs; it is an error if that fails."""
        for name, needed in NEEDED.items():
            if f"{{{name}}}" in line and name != makes and not self.places[name].exists():
                self._run(needed, makes=name)
        arguments = [argument.format(**self.places) for argument in line]
        settings = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, __file__, WORK, str(self.root), str(traced or ""), *arguments],
            env={**os.environ, **settings, "HAT_EXPORT_CACHE": str(self.folder / "cache")},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            sys.exit(f"error: {' '.join(arguments)} ended with {done.returncode}:\n{said}")


def describe(way: Way) -> dict[str, Any]:
    """A way as JSON: the counts, and what they count."""
    counted = {"steps": way.steps, "returns": way.returns, "climbs": way.climbs, "calls": way.calls}
    return {
        "counts": {"entered": len(way.rooms), **{name: len(of) for name, of in counted.items()}},
        "entered": way.rooms,
        **{name: [asdict(call) for call in of] for name, of in counted.items()},
    }


def show(name: str, way: Way, floors: Mapping[str, int], verbose: bool) -> Iterator[str]:
    """The lines that the script prints of a way."""
    yield f"\n{name}: {' > '.join(map(_short, way.rooms))}"
    shown = way.calls if verbose else [c for c in way.calls if c in (*way.steps, *way.climbs)]
    for call in shown:
        kinds = {"return": way.returns, "climb": way.climbs}
        mark = " ".join(kind for kind, calls in kinds.items() if call in calls)
        here, there = floors.get(call.caller, ""), floors[call.called]
        yield f"  {mark:<12} {_short(call.caller)} ({here}) -> {_short(call.called)} ({there})"
        yield f"      {_short(call.where)} -> {_short(call.function)}"


def _short(text: str) -> str:
    return text.replace(f"{PACKAGE}.", "")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=f"of {list(COMMANDS)}")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="checkout to look at")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the ways themselves")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--check", action="store_true", help="exit status 1 beyond a limit")
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if unknown := sorted({*arguments.commands} - {*COMMANDS}):
        parser.error(f"{', '.join(unknown)}: no such way; expected of {', '.join(COMMANDS)}")
    if not (root / PACKAGE).is_dir():
        parser.error(f"{root}: no folder {PACKAGE}/ in it; name a checkout")
    house = read_house(root)
    with tempfile.TemporaryDirectory(prefix="way-") as folder:
        runner = Runner(root, Path(folder))
        wanted = [name for name in COMMANDS if name in (arguments.commands or COMMANDS)]
        ways = {name: runner.follow(name, house) for name in wanted}
    exceeded = [name for name, way in ways.items() if beyond(name, way)]
    if arguments.json:
        print(json.dumps({name: describe(way) for name, way in ways.items()}, indent=1))
        return int(arguments.check and bool(exceeded))
    print(
        f"{'command':<16} {'entered':>7} {'returns':>7} {'at most':>7} {'climbs':>6} {'calls':>6}"
    )
    for name, way in ways.items():
        mark = "  EXCEEDED" if name in exceeded else ""
        print(
            f"{name:<16} {len(way.rooms):>7} {len(way.returns):>7} {MOST_RETURNS[name]:>7} "
            f"{len(way.climbs):>6} {len(way.calls):>6}{mark}"
        )
    for name, way in ways.items():
        print("\n".join(show(name, way, house.floors, arguments.verbose)))
    return int(arguments.check and bool(exceeded))


if __name__ == "__main__":
    if sys.argv[1:2] == [WORK]:
        work(Path(sys.argv[2]), *sys.argv[3:])
    else:
        sys.exit(main())
