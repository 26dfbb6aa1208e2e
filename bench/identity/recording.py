"""Runs every case with the program that is recorded, and describes what it has written."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cases import CHECKPOINT, Case, choose, read_cases
from forms import BATCHES, STRIPPED, STRIPPED_OF, Runner, describe, feed

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("demo/hat-tiny-emojicap", "demo/emojicap", "bench/plans/demo_four_times_smaller.json")
#: Some files hold paths, so every record is made in the same place.
WORK = Path(tempfile.gettempdir()) / "hat-export-identity"
PICTURES = 40


@contextmanager
def alone() -> Iterator[None]:
    """Hold :data:`WORK`; SystemExit if another record is being made there."""
    with WORK.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"{WORK}: another record is being made; wait for its end") from None
        yield


def record(
    programs: Path, wanted: Callable[[str], bool], numbers: Sequence[int], jobs: int
) -> dict[str, Any]:
    """Everything that a program writes.

    Args:
        programs: Folder of ``hat-export``, ``hat-bench`` and ``python``.
        wanted: Chooses cases by name; those that they need are recorded too.
        numbers: Numbers of threads.
        jobs: Commands at the same time.

    Returns:
        Machine and versions, and for each number of threads seconds by case and descriptions by
        item.
    """
    found: dict[str, Any] = {
        "machine": {"cpu": _vector_extensions(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("numpy", "onnx", "onnxruntime")},
        "stripped": {"everywhere": list(STRIPPED), **{k: list(v) for k, v in STRIPPED_OF.items()}},
    }

    @cache
    def help_of(program: str, command: str) -> str:
        return checked([str(programs / program), command, "--help"], Path.cwd()).stdout

    for threads in numbers:
        shutil.rmtree(WORK, ignore_errors=True)
        make_inputs(WORK)
        cases = choose(read_cases(threads, help_of), wanted)
        runs = run_cases(programs, cases, threads, jobs)
        items: dict[str, Any] = {}
        library = next(programs.parent.glob("lib/python*/**/kernels/**/libhat_operators.*"), None)
        for name, done in runs.items():
            said = {"said": done.said} if done.status else {}
            items[f"{name}/exit-status"] = {"bytes": str(done.status), **said}
            for path in files_of(name):
                item = str(path.relative_to(WORK))
                item = item if "/" in item else f"{name}/{item}"
                items[item] = describe(path, name, Runner(threads, library))
        items |= session_results(programs, runs, threads)
        seconds = {name: done.seconds for name, done in runs.items()}
        found[f"threads {threads}"] = {"seconds": seconds, "items": items}
    shutil.rmtree(WORK)
    return found


@dataclass(frozen=True)
class Done:
    """A finished command: exit status, the end of its standard error, how long it took."""

    status: int
    said: str
    seconds: float


def run_cases(programs: Path, cases: Sequence[Case], threads: int, jobs: int) -> dict[str, Done]:
    """Run commands, each after those that it needs."""
    started: dict[str, Future[Done]] = {}

    def work(case: Case) -> Done:
        # Earlier ones have been started before: a pool takes its tasks in order.
        for name in case.needs & started.keys():
            started[name].result()
        if case.copied:
            shutil.copyfile(WORK / case.copied, WORK / case.name)
        begun = time.perf_counter()
        done = run([str(programs / case.words[0]), *case.words[1:]], WORK, threads)
        seconds = round(time.perf_counter() - begun, 1)
        if "--json" in case.words:
            (WORK / f"{case.name}.stdout.json").write_text(done.stdout)
        print(f"  {seconds:5.1f} s, status {done.returncode}: {shlex.join(case.words)}", flush=True)
        return Done(done.returncode, done.stderr[-1000:], seconds)

    with ThreadPoolExecutor(jobs) as pool:
        for case in cases:
            started[case.name] = pool.submit(work, case)
        return {name: future.result() for name, future in started.items()}


def run(words: Sequence[str], folder: Path, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """Run a program in a folder; help comes in wide lines without colours."""
    variables = {
        "COLUMNS": "200",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        "HAT_EXPORT_CACHE": str(folder / "cache"),
    }
    return subprocess.run(
        words, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False
    )


def checked(
    words: Sequence[str], folder: Path, threads: int = 1
) -> subprocess.CompletedProcess[str]:
    """As :func:`run`; SystemExit with the end of what it says if it fails."""
    done = run(words, folder, threads)
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)[:200]}: {done.stderr[-2000:]}")
    return done


def make_inputs(folder: Path) -> None:
    """What the commands read, all made from the repository's demo."""
    (folder / "pictures").mkdir(parents=True)
    for name in INPUTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, folder / Path(name).name)
    with zipfile.ZipFile(folder / "emojicap/images_test.zip") as archive:
        pictures = sorted(name for name in archive.namelist() if name.endswith(".png"))
        for name in pictures[:PICTURES]:
            (folder / "pictures" / Path(name).name).write_bytes(archive.read(name))
        (folder / "picture.png").write_bytes(archive.read(pictures[PICTURES]))
    images = json.loads((folder / "emojicap/dataset_emojicap.json").read_text())["images"]
    captions = [image["sentences"][0]["raw"] for image in images if image["split"] == "val"]
    # Each caption once: the same text twice is an error in an index.
    (folder / "captions.txt").write_text("\n".join(dict.fromkeys(captions)) + "\n")
    shapes: Mapping[str, Sequence[int | str]] = {
        "pixel_values": ("images", 3, 64, 64),
        "input_ids": ("captions", "words"),
        "attention_mask": ("captions", "words"),
    }
    arrays = {
        f"{name}{batch}": feed(name, shape, batch)
        for name, shape in shapes.items()
        for batch in BATCHES
    }
    np.savez(folder / "inputs.npz", **arrays)  # type: ignore[arg-type]  # savez's own allow_pickle


def files_of(case: str) -> list[Path]:
    """What a case has written: its folder or file, and reports beside it."""
    beside = [WORK / f"{case}.{kind}.json" for kind in ("report", "plan", "stdout")]
    inside = sorted((WORK / case).rglob("*"))
    return [path for path in (*inside, WORK / case, *beside) if path.is_file()]


def session_results(programs: Path, names: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Hashes of features and scores of every bundle, and of the checkpoint in PyTorch."""
    bundles = [name for name in names if (WORK / name / "manifest.json").exists()]
    script = Path(__file__).with_name("sessions.py")
    words = [str(programs / "python"), str(script), str(threads), *bundles, CHECKPOINT]
    sessions = json.loads(checked(words, WORK, threads).stdout)
    return {f"{name}/session": {"results": hashes} for name, hashes in sessions.items()}


def _vector_extensions() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = {flag for line in lines if line.startswith(("flags", "Fea")) for flag in line.split()}
    return " ".join(sorted(flag for flag in flags if re.match("avx|amx|asimd|sve", flag)))
