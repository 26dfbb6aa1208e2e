"""SIGKILL at random moments: afterwards the old result is there or the new one, and nothing else.

Half of the kills come at moments drawn evenly over the whole command, half while it writes: from
the moment when something appears beside its result. The whole process group is killed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import signal
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from commands import DamageError, Place, Writer, preload, timed, writers

#: A run without a kill after so many kills: it must give the new result and leave no strays.
UNDISTURBED = 10


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows per command; ``--kills`` is of all of them together."""
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        inputs = Place(Path(folder))
        chosen = [one for one in writers(inputs) if options.only in (None, one.name)]
        each = max(1, options.kills // len(chosen))
        preload()
        # Forked, each with all that is imported, and free of threads to fork again.
        with ProcessPoolExecutor(2, multiprocessing.get_context("fork")) as pool:
            work = [
                pool.submit(_kill_named, inputs, one.name, each, options.seed) for one in chosen
            ]
            return [one.result() for one in work]


def _kill_named(inputs: Place, name: str, count: int, seed: int) -> dict[str, Any]:
    return kill(inputs, next(one for one in writers(inputs) if one.name == name), count, seed)


def kill(shared: Place, writer: Writer, count: int, seed: int) -> dict[str, Any]:
    """Kill a command so often, and look at what it left each time."""
    place = Place(shared.folder / f"place-{writer.name}")
    chance = random.Random(seed)
    writer.reset(True)
    old = writer.state()
    seconds = timed(place, writer)
    new = writer.state()
    if old == new:
        raise SystemExit(f"{writer.name}: the old result can't be told from the new one")
    row: dict[str, Any] = {
        "command": writer.name,
        "kills": 0,
        "while_writing": 0,
        **dict.fromkeys(("left_old", "left_new", "left_nothing", "left_part"), 0),
        "corrupted": [],
        "undisturbed_runs": 0,
        "strays_after_undisturbed": 0,
        "most_strays": 0,
        "seconds": round(seconds, 1),
    }
    writer.reset(True)
    before = writer.state()
    while row["kills"] < count:
        writing = bool(row["kills"] % 2)
        if _killed(place, writer, seconds, writing, chance):
            row["kills"] += 1
            row["while_writing"] += writing
        strays = place.strays(*writer.folders)
        row["most_strays"] = max(row["most_strays"], len(strays))
        try:
            before = _look(writer, before, old, new, row)
        except DamageError as error:
            row["corrupted"].append(str(error))
            writer.reset(True)
            before = writer.state()
        print(f"  {writer.name}: {row['kills']} kills, {len(strays)} strays", flush=True)
        if row["kills"] % UNDISTURBED == 0 or row["kills"] == count:
            seconds = timed(place, writer)
            row["undisturbed_runs"] += 1
            row["strays_after_undisturbed"] += len(place.strays(*writer.folders))
            if writer.state() != new:
                row["corrupted"].append("the next run gave another result")
        if writer.state() == new:
            writer.reset(chance.random() < 0.5)
            before = writer.state()
    return row


def _look(writer: Writer, before: str, old: str, new: str, row: dict[str, Any]) -> str:
    """Count what is there after a kill; DamageError if it is a mixture."""
    state = writer.state()
    if state == new:
        row["left_new"] += 1
    elif state == "absent" and before == "absent":
        row["left_nothing"] += 1
    elif writer.grows and new.startswith(state) and state.startswith(before.removeprefix("absent")):
        row["left_part"] += 1
    elif state == old and before == old:
        row["left_old"] += 1
    else:
        raise DamageError(f"neither the old result nor the new one: {state[:80]}")
    return state


def _killed(
    place: Place, writer: Writer, seconds: float, writing: bool, chance: random.Random
) -> bool:
    """Run and kill; whether the command was still running."""
    present = {path.name for path in place.strays(*writer.folders)}
    process = place.start(writer.command)
    began = time.monotonic()
    if writing:
        while process.poll() is None and not _writes(place, writer, present):
            time.sleep(0.005)
        # What is left of the command's time, so that the last steps are hit too.
        wait = chance.uniform(0, max(0.2, seconds - (time.monotonic() - began)))
    else:
        wait = chance.uniform(0, seconds)
    end = time.monotonic() + wait
    while process.poll() is None and time.monotonic() < end:
        time.sleep(min(0.02, max(0.0, end - time.monotonic())))
    running = process.poll() is None
    if running:
        process.signal(signal.SIGKILL)
        process.wait()
    return running


def _writes(place: Place, writer: Writer, present: set[str]) -> bool:
    found = place.strays(*writer.folders)
    return any(path.name not in present for path in found) or (writer.grows and writer.out.exists())
