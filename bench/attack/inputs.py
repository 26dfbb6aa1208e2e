"""Malformed inputs through every door.

Each door has a process of its own with bounded memory, which opens one input after another. This
process watches it: an input that takes too long, or ends the process, is a finding, and a new
process goes on behind it.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import samples
from doors import Outcome, attempt, surroundings
from table import DOORS

#: What one input may take.
SECONDS = 20
MEMORY = 2 << 30
#: What loading libraries may take, in seconds.
LOADING = 300
#: Inputs of each door that go through the real command line, too.
COMMANDS = 10
#: What a command may take: starting Python and libraries on a busy machine is most of it.
COMMAND_SECONDS = 120
#: Findings that are printed of each door.
SHOWN = 12


#: How the row of a door begins that should have been tried and could not be.
BROKEN = "broken"


class BrokenDoorError(Exception):
    """A door that can't be tried."""


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="hat-attack-") as sound:
        samples.make_sound(Path(sound))
        return _run(options, Path(sound))


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """Doors that should have been tried and could not be."""
    return [row["door"] for row in rows if row["attack"].startswith(f"{BROKEN}: ")]


def _run(options: argparse.Namespace, sound: Path) -> list[dict[str, Any]]:
    names = [name for name in DOORS if options.only in (None, name)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as doors:
        rows = list(doors.map(lambda name: _open(name, options, sound), names))
    columns = dict.fromkeys(key for row in rows for key in row)
    return [dict.fromkeys(columns, 0) | row for row in rows]


def _open(name: str, options: argparse.Namespace, sound: Path) -> dict[str, Any]:
    door = DOORS[name]
    missing = [package for package in door.needs if importlib.util.find_spec(package) is None]
    if missing:
        print(f"{door.name}: not tried, {missing[0]} isn't installed", flush=True)
        return {"door": door.name, "attack": f"not tried: {missing[0]} isn't installed"}
    try:
        outcomes = _try_all(name, sound, options.seed, options.count)
    except BrokenDoorError as error:  # the other doors' findings count
        print(error, flush=True)
        return {"door": door.name, "attack": f"{BROKEN}: {error}"}
    commands = _try_commands(name, sound, options.seed, min(COMMANDS, options.count))
    _show(name, outcomes + commands)
    return _row(name, outcomes, commands)


def _row(name: str, outcomes: list[Outcome], commands: list[Outcome]) -> dict[str, Any]:
    kinds = Counter(outcome.kind for outcome in outcomes + commands)
    door = DOORS[name]
    return {
        "door": door.name,
        "attack": door.attack,
        "tried": len(outcomes),
        "by command": len(commands),
        "refused": kinds["refused"],
        "accepted": kinds["accepted"],
        "tracebacks": kinds["traceback"],
        "hangs": kinds["hang"],
        "crashes": kinds["crash"],
        "over 2 GiB": kinds["memory"],
        "executed": kinds["executed"],
        "escaped": kinds["escaped"],
    }


def _show(name: str, outcomes: list[Outcome]) -> None:
    kinds = Counter(outcome.kind for outcome in outcomes)
    print(f"{DOORS[name].name}: {dict(kinds)}", flush=True)
    bad = Counter((o.kind, o.attack, o.detail) for o in outcomes if o.bad)
    for (kind, attack, detail), count in bad.most_common(SHOWN):
        print(f"  {count} x {kind} by {attack}: {detail}", flush=True)


def _try_all(name: str, sound: Path, seed: int, count: int) -> list[Outcome]:
    context = multiprocessing.get_context("spawn")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="hat-attack-") as work:
        while len(outcomes) < count:
            ours, theirs = context.Pipe()
            done = len(outcomes)
            process = context.Process(
                target=_work, args=(name, sound, seed, done, count, Path(work), theirs), daemon=True
            )
            process.start()
            theirs.close()
            outcomes += _watch(ours, process)
            if len(outcomes) == done:
                raise BrokenDoorError(f"{name}: its process ends before an input is made")
    return outcomes


def _watch(pipe: Connection, process: Any) -> list[Outcome]:
    """What a process tells, until it is done or has to be ended."""
    found: list[Outcome] = []
    attack = None
    while True:
        # Before the first input libraries are loaded.
        if not _answers(pipe, process.pid, SECONDS if found or attack is not None else LOADING):
            process.kill()
            process.join()
            found.append(Outcome(str(attack), "hang", f"longer than {SECONDS} s"))
            return found
        try:
            message = pipe.recv()
        except EOFError:
            process.join()
            if attack is not None:
                found.append(Outcome(attack, "crash", f"exit status {process.exitcode}"))
            return found
        if isinstance(message, Outcome):
            found.append(message)
            attack = None
        else:
            attack = message


def _answers(pipe: Connection, pid: int, seconds: int) -> bool:
    """Whether a process tells something before it has computed, or slept, for too long.

    Time in which it waits for a core isn't its own: a busy machine hangs nothing.
    """
    began = before = _cpu_seconds(pid)[0]
    slept = 0
    while not pipe.poll(1):
        computed, sleeps = _cpu_seconds(pid)
        slept = slept + 1 if sleeps and computed == before else 0
        before = computed
        if computed - began > seconds or slept > 3 * seconds:
            return False
    return True


def _cpu_seconds(pid: int) -> tuple[float, bool]:
    """What a process has computed, and whether it sleeps."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), fields[0] in "SDZ"


def _work(
    name: str, sound: Path, seed: int, first: int, count: int, work: Path, pipe: Connection
) -> None:
    """Open inputs and tell of each, before and after."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import warnings

    warnings.simplefilter("ignore")
    door = DOORS[name]
    door.prepare(sound)
    _warm_up(door, Path(tempfile.mkdtemp(dir=work)))
    _limit_memory()
    for number in range(first, count):
        place = work / str(number)
        folder = place / "input"
        shutil.rmtree(place, ignore_errors=True)
        folder.mkdir(parents=True)
        surroundings(folder)
        attack = door.make(Random(f"{name} {seed} {number}"), folder)
        pipe.send(attack)
        pipe.send(attempt(door, attack, folder))
        shutil.rmtree(place, ignore_errors=True)


def _warm_up(door: Any, base: Path) -> None:
    """Load what is loaded at the first input, so that the limit of memory comes on top of it."""
    folder = base / "first" / "input"
    folder.mkdir(parents=True)
    surroundings(folder)
    attempt(door, door.make(Random(0), folder), folder)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _try_commands(name: str, sound: Path, seed: int, count: int) -> list[Outcome]:
    """The first inputs again, through the command that a user would give."""
    door, outcomes = DOORS[name], []
    with tempfile.TemporaryDirectory(prefix="hat-attack-") as work:
        door.prepare(sound)
        for number in range(count):
            folder = Path(work) / str(number) / "input"
            folder.mkdir(parents=True)
            surroundings(folder)
            attack = door.make(Random(f"{name} {seed} {number}"), folder)
            outcomes.append(_command(door.command(folder), attack, folder))
    return outcomes


def _command(arguments: list[str], attack: str, folder: Path) -> Outcome:
    program = Path(sys.executable).parent / arguments[0]
    try:
        done = subprocess.run(
            [str(program), *arguments[1:]],
            capture_output=True,
            timeout=COMMAND_SECONDS,
            cwd=folder.parent,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Outcome(attack, "hang", f"{' '.join(arguments)}: longer than {COMMAND_SECONDS} s")
    told = done.stderr.decode(errors="replace")
    if (folder.parent / "canary").exists():
        return Outcome(attack, "executed", "a payload ran")
    if done.returncode < 0:
        return Outcome(attack, "crash", f"{' '.join(arguments)}: signal {-done.returncode}")
    if "Traceback" in told:
        return Outcome(attack, "traceback", f"{' '.join(arguments)}: {told.splitlines()[-1]}")
    if done.returncode == 0:
        return Outcome(attack, "accepted")
    last = (told.strip().splitlines() or [""])[-1]
    if "\x1b" in told:
        return Outcome(attack, "traceback", f"{' '.join(arguments)}: control characters in {last}")
    # Some results are an exit status without an error: a comparison that found a difference.
    return Outcome(attack, "refused", last)
