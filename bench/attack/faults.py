"""Faults of the machine and of its users, injected into every command that writes something.

After each fault the old result must be there or the new one, the command must have said one clear
line and ended with a status that isn't 0 (or have succeeded), and the same command must succeed by
itself once the fault is gone and leave nothing behind. Full and read-only disks are file systems of
their own (tmpfs), so this needs root.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from commands import DamageError, Place, Run, Writer, preload, writers_of_all

#: Room that a full disk still has, in bytes.
ROOMS = (0, 8 << 10, 256 << 10, 4 << 20)
#: Memory that a process may still take, in bytes.
MEMORY = (8 << 20, 64 << 20, 200 << 20)
#: Where Debian has libfaketime.
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"
#: A process that says nothing for so long hangs.
LONGEST = 300.0


@dataclass(frozen=True)
class Trial:
    """One command under one fault.

    Attributes:
        place: With its inputs.
        writer: The command.
        chance: Where something is drawn.
    """

    place: Place
    writer: Writer
    chance: random.Random

    def run(self, limit: Callable[[], None] | None = None, **environment: str) -> Run:
        """Start the command."""
        return self.place.start(self.writer.command, limit, environment)

    def judge(self, run: Run, before: str, succeeds: bool = False) -> str | None:
        """What is wrong with the end of a run; None if nothing is."""
        status = _ended(run)
        if status is None:
            return "hangs"
        output = self.place.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        try:
            state = self.writer.state()
        except DamageError as error:
            return f"a mixture: {error}"
        if "Traceback" in output or "Exception ignored" in output:
            return f"traceback: {output.strip().splitlines()[-1]}"
        if status < 0:
            return f"ended by signal {-status}"
        if status == 0:
            return None
        if succeeds:
            return f"failed: {output[-300:]}"
        # Comparisons and load tests have a status of their own for a bad result.
        if len(lines) != 1 and not (state != before and self.writer.judges):
            return f"status {status} with {len(lines)} error lines: {output[-300:]}"
        if state != before and before != "absent" and not self.writer.grows and not lines:
            return "the old result has gone"
        return None


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per fault and command."""
    preload()
    rows = []
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        place = Place(Path(folder))
        for writer in writers_of_all(place):
            for name, inject in FAULTS.items():
                if options.only not in (None, name, writer.name):
                    continue
                trial = Trial(place, writer, random.Random(f"{options.seed} {name} {writer.name}"))
                began = time.monotonic()
                count, found = _attack(trial, inject)
                row = {"fault": name, "command": writer.name, "trials": count, "findings": found}
                print(f"  {row} {time.monotonic() - began:.0f} s", flush=True)
                rows.append(row)
    return rows


def _attack(trial: Trial, inject: Callable[[Trial], Iterator[str | None]]) -> tuple[int, list[str]]:
    """Inject a fault in all its forms, then run without it."""
    writer, found, count = trial.writer, [], 0
    writer.reset(True)
    for problem in inject(trial):
        count += 1
        found += [problem] if problem else []
    if not count:
        return 0, []
    with suppress(DamageError):
        if not writer.replaces and writer.state() != "absent":
            writer.reset(False)
    problem = trial.judge(trial.run(), "absent", succeeds=not writer.judges)
    found += [f"the next run: {problem}"] if problem else []
    found += [f"left behind: {path.name}" for path in trial.place.strays(*writer.folders)]
    return count, found


def _ended(run: Run, longest: float = LONGEST) -> int | None:
    end = time.monotonic() + longest
    while run.poll() is None:
        if time.monotonic() > end:
            run.signal(signal.SIGKILL)
            run.wait()
            return None
        time.sleep(0.01)
    return run.status


@contextmanager
def _file_system(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at a folder, with what the folder holds."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        size = f"size={megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
        try:
            shutil.copytree(kept, folder, dirs_exist_ok=True)
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(trial: Trial) -> Iterator[str | None]:
    """Each folder that is written to has little room left, or none."""
    for folder in (*trial.writer.folders, trial.place.temporary):
        with _file_system(folder, 96):
            for room in ROOMS:
                before = trial.writer.state()
                _fill(folder / "ballast", room)
                yield trial.judge(trial.run(), before)
                (folder / "ballast").unlink()


def _fill(path: Path, room: int) -> None:
    left = max(0, shutil.disk_usage(path.parent).free - room)
    with path.open("wb") as file, suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, left or 1)


def read_only(trial: Trial) -> Iterator[str | None]:
    """Each folder that is written to can't be written."""
    for folder in trial.writer.folders:
        with _file_system(folder, 96):
            before = trial.writer.state()
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield trial.judge(trial.run(), before)


def out_of_memory(trial: Trial) -> Iterator[str | None]:
    """The address space ends some megabytes above what the libraries take."""

    def limit(more: int) -> Callable[[], None]:
        def set_limit() -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            bound = pages * resource.getpagesize() + more
            resource.setrlimit(resource.RLIMIT_AS, (bound, bound))

        return set_limit

    for more in MEMORY:
        yield trial.judge(trial.run(limit(more)), trial.writer.state())


def closed_pipe(trial: Trial) -> Iterator[str | None]:
    """Nobody reads what is printed."""
    before = trial.writer.state()
    read, write = os.pipe()
    os.close(read)
    running = trial.run(lambda: [os.dup2(write, 1), None][1])
    os.close(write)
    status = _ended(running)
    output = trial.place.log.read_text(encoding="utf-8", errors="replace")
    if status is None or status < 0 or "Traceback" in output or "BrokenPipe" in output:
        yield f"status {status}: {output[-300:]}"
        return
    try:
        state = trial.writer.state()
    except DamageError as error:
        yield f"a mixture: {error}"
        return
    yield None if status or state != before else "nobody was told"


def twice(trial: Trial) -> Iterator[str | None]:
    """Two of the same at once: one wins, the other wins later or says why not."""
    before = trial.writer.state()
    other = Place(trial.place.folder / "other")
    first = trial.run()
    second = Run(trial.writer.command, trial.place.environment, other.log)
    statuses = [_ended(first), _ended(second)]
    problem = trial.judge(first, before) or Trial(other, trial.writer, trial.chance).judge(
        second, before
    )
    if not problem and 0 not in statuses and not trial.writer.judges:
        problem = f"neither succeeded: {statuses}"
    yield problem


def interrupted(trial: Trial) -> Iterator[str | None]:
    """SIGTERM and SIGINT at moments of the command."""
    for number in (signal.SIGTERM, signal.SIGINT):
        for _ in range(2):
            before = trial.writer.state()
            running = trial.run()
            time.sleep(0.1 + trial.chance.uniform(0, trial.writer.seconds))
            if running.poll() is None:
                os.kill(running.pid, number)
            yield trial.judge(running, before)


def removed_folder(trial: Trial) -> Iterator[str | None]:
    """The output's folder is removed while the command runs."""
    running = trial.run()
    time.sleep(0.1 + trial.chance.uniform(0, trial.writer.seconds))
    folder = trial.writer.out.parent
    folder.rename(folder.with_name(f"{folder.name}-gone"))
    shutil.rmtree(folder.with_name(f"{folder.name}-gone"), ignore_errors=True)
    yield trial.judge(running, "absent")
    trial.writer.reset(True)


def clock(trial: Trial) -> Iterator[str | None]:
    """Every file is of the future, or of 1970, and the clock jumps to a year before."""
    for moment in (4_000_000_000, 1):
        for folder in (*trial.writer.folders, trial.place.inputs):
            if not folder.exists():  # a cache that isn't there yet
                continue
            for path in (folder, *folder.rglob("*")):
                os.utime(path, (moment, moment))
        if not trial.writer.replaces:
            trial.writer.reset(False)
        yield trial.judge(trial.run(), trial.writer.state(), succeeds=not trial.writer.judges)
    if Path(FAKETIME).exists():
        if not trial.writer.replaces:
            trial.writer.reset(False)
        fresh = subprocess.run(
            trial.writer.command,
            env=trial.place.environment | {"LD_PRELOAD": FAKETIME, "FAKETIME": "-365d"},
            capture_output=True,
            text=True,
            check=False,
        )
        wrong = fresh.returncode and not trial.writer.judges
        yield f"a year ago: {fresh.stderr[-300:]}" if wrong else None


def corrupted_cache(trial: Trial) -> Iterator[str | None]:
    """Each file that the command keeps for the next run is cut, flipped, emptied or foreign."""
    cache = trial.writer.cache
    if cache is None:
        return
    _ended(trial.run())
    expected = trial.writer.state()
    files = sorted(path for path in cache.rglob("*") if path.is_file() and path.stat().st_size)
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = bytearray(content)
        flipped[middle] ^= 16
        for damage in (content[:middle], bytes(flipped), b"", b"\x00garbage" * 99):
            path.write_bytes(damage)
            if not trial.writer.replaces:
                trial.writer.reset_output()
            problem = trial.judge(trial.run(), expected, succeeds=True)
            if not problem and not trial.writer.varies and trial.writer.state() != expected:
                problem = "another result"
            yield f"{path.relative_to(cache)}: {problem}" if problem else None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


FAULTS: dict[str, Callable[[Trial], Iterator[str | None]]] = {
    "full disk": full_disk,
    "read-only": read_only,
    "out of memory": out_of_memory,
    "closed pipe": closed_pipe,
    "two at once": twice,
    "SIGTERM, SIGINT": interrupted,
    "folder removed": removed_folder,
    "clock jumps": clock,
    "damaged cache": corrupted_cache,
}
