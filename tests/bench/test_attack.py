"""A few malformed inputs through every door of ``bench/attack``; ``make attack`` has thousands."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest

from places import ATTACK, on_path

pytest.importorskip("torch")

INPUTS = 12
SECONDS = 60
NAMES = (
    "exploits zip legacy safetensors folder manifest hashes graph parts triton engines "
    "images-index captions-index cache karpathy tables huggingface sources pictures captions plan "
    "state compare merge"
).split()


@pytest.fixture(scope="module")
def attack() -> Iterator[dict[str, ModuleType]]:
    with on_path(ATTACK):
        import doors
        import samples
        import table

        yield {"doors": doors, "samples": samples, "table": table}


@pytest.fixture(scope="module")
def sound(attack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    attack["samples"].make_sound(folder)
    return folder


@pytest.fixture
def watchdog() -> Iterator[None]:
    """An input that takes too long ends the test."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_every_door_is_listed(attack: dict[str, Any]) -> None:
    assert list(attack["table"].DOORS) == NAMES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_malformed_inputs_are_refused_in_a_line(
    attack: dict[str, Any], sound: Path, watchdog: None, tmp_path: Path, name: str
) -> None:
    doors, door = attack["doors"], attack["table"].DOORS[name]
    for package in door.needs:
        pytest.importorskip(package)
    door.prepare(sound)
    for number in range(INPUTS):
        folder = tmp_path / str(number) / "input"
        folder.mkdir(parents=True)
        doors.surroundings(folder)
        kind = door.make(Random(f"{name} 1 {number}"), folder)
        signal.alarm(SECONDS)
        outcome = doors.attempt(door, kind, folder)
        assert not outcome.bad, outcome
