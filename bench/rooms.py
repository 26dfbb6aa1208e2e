"""Rooms of the package, the arrows that imports draw between them, and the floors that result.

* A **room** is a folder with modules, or a module in the package's root; ``kernels/`` and ``cli/``
  are rooms of the package, as they are installed there. Modules that stand beside a subpackage
  anywhere else belong to the folder that they are in.
* An **arrow** is an ordered pair of rooms with any import between them: at the top of a module, in
  a function, under ``TYPE_CHECKING``, or by a module's name in a string.
* A **floor** is a step of the longest way down along arrows; rooms that import each other in a
  cycle share one.
* An arrow goes **upward** if it goes against the layer table of ``tests/test_layers.py``, or is
  part of a cycle and doesn't go down in that table.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from source_imports import PACKAGE, Import, folders_of, read_imports, source_modules

Arrow = tuple[str, str]
Layers = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class House:
    """Rooms and how they are joined.

    Attributes:
        rooms: Their names, as installed.
        arrows: (who imports, what) -> the imports behind it.
        floors: Room -> its floor, from 1.
        cycles: Rooms that import each other in a cycle.
        unreadable: Imports by a string that can't be read, as ``module:line``.
    """

    rooms: tuple[str, ...]
    arrows: dict[Arrow, list[Import]]
    floors: dict[str, int]
    cycles: list[tuple[str, ...]]
    unreadable: list[str]

    def longest_way_down(self) -> list[str]:
        """A chain of rooms from the highest floor to the lowest, one of each floor."""
        way = [max(self.rooms, key=self.floors.__getitem__)]
        while self.floors[way[-1]] > 1:
            # Of a cycle another member may hold the arrow that leads on.
            cycle = next((c for c in self.cycles if way[-1] in c), (way[-1],))
            below = self.floors[way[-1]] - 1
            way.append(min(b for a, b in self.arrows if a in cycle and self.floors[b] == below))
        return way


def room_of(name: str, folders: set[str]) -> str:
    """The room of a module: its folder, or itself in the package's root."""
    if name in folders:
        return name
    parent = name.rpartition(".")[0]
    return name if parent == PACKAGE else parent


def read_house(root: Path) -> House:
    """Rooms and arrows of a checkout."""
    modules = source_modules(root)
    imports = read_imports(modules)
    folders = folders_of(modules)
    rooms = tuple(sorted({room_of(name, folders) for name in modules}))
    arrows: dict[Arrow, list[Import]] = {}
    for entry in imports.entries:
        arrow = (room_of(entry.importer, folders), room_of(entry.imported, folders))
        if arrow[1] in rooms and arrow[0] != arrow[1]:
            arrows.setdefault(arrow, []).append(entry)
    cycles = find_cycles(rooms, arrows)
    return House(rooms, arrows, find_floors(rooms, arrows, cycles), cycles, imports.unreadable)


def _below(rooms: Iterable[str], arrows: Iterable[Arrow]) -> dict[str, set[str]]:
    below: dict[str, set[str]] = {room: set() for room in rooms}
    for importer, imported in arrows:
        below[importer].add(imported)
    return below


def find_cycles(rooms: Iterable[str], arrows: Iterable[Arrow]) -> list[tuple[str, ...]]:
    """Sets of rooms, of two or more, each of which reaches every other along arrows."""
    below = _below(rooms, arrows)
    reached: dict[str, set[str]] = {}
    for room in below:
        seen: set[str] = set()
        waiting = [room]
        while waiting:
            new = below[waiting.pop()] - seen
            seen |= new
            waiting.extend(new)
        reached[room] = seen
    cycles = {
        tuple(sorted(other for other in seen if room in reached[other]))
        for room, seen in reached.items()
        if room in seen
    }
    return sorted(cycles)


def find_floors(
    rooms: Iterable[str], arrows: Iterable[Arrow], cycles: list[tuple[str, ...]]
) -> dict[str, int]:
    """The floor of each room: one more than the highest that it imports, outside its cycle."""
    below = _below(rooms, arrows)
    cycle_of = {room: cycle for cycle in cycles for room in cycle}
    floors: dict[str, int] = {}

    def floor(room: str) -> int:
        if room not in floors:
            together = cycle_of.get(room, (room,))
            leads_to = {other for member in together for other in below[member]} - set(together)
            height = 1 + max(map(floor, leads_to), default=0)
            floors.update(dict.fromkeys(together, height))
        return floors[room]

    return {room: floor(room) for room in below}


def owner(name: str, places: Iterable[str]) -> str | None:
    """The longest of `places` that is the module or a package around it."""
    around = [place for place in places if name == place or name.startswith(place + ".")]
    return max(around, key=len, default=None)


def layer(name: str, layers: Layers) -> int | None:
    """The row of a module in the layer table, or None where it isn't placed."""
    places = {place: position for position, (_, names) in enumerate(layers) for place in names}
    # The package's name places only its own __init__.py; new rooms have to be entered.
    place = owner(name, places.keys() - {PACKAGE})
    if place is not None:
        return places[place]
    return places.get(name) if name == PACKAGE else None


def read_layers(root: Path) -> Layers:
    """The layer table of a checkout, from the source of its test; empty where there is none."""
    for path in sorted((root / "tests").rglob("test_layers.py")):
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            names = [node.target] if isinstance(node, ast.AnnAssign) else []
            names = node.targets if isinstance(node, ast.Assign) else names
            if any(isinstance(name, ast.Name) and name.id == "LAYERS" for name in names):
                table: Layers = ast.literal_eval(node.value)
                return table
    return ()


def upward_arrows(house: House, layers: Layers) -> list[Arrow]:
    """Arrows that go against the layer table, and those in a cycle that don't go down in it."""
    found = []
    for arrow in sorted(house.arrows):
        here, there = (layer(room, layers) for room in arrow)
        placed = here is not None and there is not None
        in_cycle = any(arrow[0] in cycle and arrow[1] in cycle for cycle in house.cycles)
        # In the table high rooms stand below low ones: who imports has the larger number.
        if (placed and there > here) or (in_cycle and not (placed and there < here)):
            found.append(arrow)
    return found
