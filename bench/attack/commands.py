"""The commands that write something, on the demo model, for attacks on what they write."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from hat_export.base.atomic import remove
from hat_export.base.files import sha256_of
from hat_export.bundle.bundle import MANIFEST, Bundle
from hat_export.errors import HatError
from hat_export.index.images import ImageIndex

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "demo" / "hat-tiny-emojicap"
DATA = ROOT / "demo" / "emojicap"
PROGRAMS = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}

#: What the commands import while they run.
PRELOADED = (
    "hat_export.cli.export",
    "hat_export.cli.bench",
    "hat_export.api",
    "hat_export.export.onnx_export",
    "hat_export.quantize.bundles",
    "hat_export.quantize.preflight",
    "hat_export.index.build",
    "hat_export.parity.run",
    "hat_export.bundle.reproduce",
    "hat_export.data.readers",
    "hat_export.runtime.backends.onnxruntime_backend",
    "hat_export.kernels.alignment_cpu",
)

#: Facts of a parity report that don't depend on when and where it ran.
LASTING = ("verdict", "images", "captions", "deltas", "changed", "levels", "score_difference")


class DamageError(Exception):
    """A result that is neither the old nor the new one."""


def program(name: str, *arguments: object) -> list[str]:
    """A command line of this project, for this interpreter."""
    return [sys.executable, "-m", PROGRAMS[name], *map(str, arguments)]


def preload() -> None:
    """Import once what the commands import, so that :class:`Run` need not."""
    for name in PRELOADED:
        importlib.import_module(name)


class Run:
    """A command in a process forked from this one: nothing is spent on importing libraries.

    Args:
        command: From :func:`program`.
        environment: Of the process.
        log: Where its output goes.
        prepare: Called in the process before the command begins.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self.status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._become(command, environment, log, prepare)

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self) -> int:
        """The exit status, once it has ended."""
        while self.poll() is None:
            time.sleep(0.01)
        assert self.status is not None
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self.pid, number)

    def _become(
        self,
        command: Sequence[str],
        environment: dict[str, str],
        log: Path,
        prepare: Callable[[], None] | None,
    ) -> NoReturn:
        code = 1
        try:
            os.setsid()
            # One description for both, so that neither writes over the other.
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            for number in (1, 2):
                os.dup2(output, number)
            os.environ.clear()
            os.environ.update(environment)
            tempfile.tempdir = None
            sys.argv = list(command[2:])
            if prepare:
                prepare()
            # Of what the descriptors are now: a stream remembers whether it could seek.
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            importlib.import_module(command[2]).main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)


@dataclass
class Place:
    """A folder with what the commands read, and a temporary folder that can be looked at.

    Attributes:
        folder: Everything is in here.
        threads: Threads of every command.
    """

    folder: Path
    threads: int = 1
    inputs: Path = field(init=False)
    temporary: Path = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = self.folder / "inputs"
        self.temporary = self.folder / "tmp"
        self.temporary.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """Of every command: temporary files and caches stay in the folder."""
        return os.environ | {
            "TMPDIR": str(self.temporary),
            "HAT_EXPORT_CACHE": str(self.folder / "cache"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a fresh interpreter."""
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=False
        )

    def start(
        self,
        command: Sequence[str],
        prepare: Callable[[], None] | None = None,
        environment: dict[str, str] | None = None,
    ) -> Run:
        """Begin a command in a process group of its own; its output goes to :attr:`log`."""
        return Run(command, self.environment | (environment or {}), self.log, prepare)

    @property
    def log(self) -> Path:
        """Output of the last command that was started."""
        return self.folder / "log"

    def made(self, name: str, *command: object) -> Path:
        """An input that a command makes, made once; its output path is appended."""
        path = self.inputs / name
        if not path.exists():
            self.inputs.mkdir(parents=True, exist_ok=True)
            done = self.run(program(*map(str, command), path))  # type: ignore[arg-type]
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr}")
        return path

    def bundle(self) -> Path:
        """The demo model as a bundle."""
        return self.made("bundle", "hat-export", "onnx", MODEL)

    def strays(self, *folders: Path) -> list[Path]:
        """Hidden and temporary files that no run owns any more."""
        # A library that the commands load keeps one small file of this name for all of its runs.
        found = [path for path in self.temporary.iterdir() if path.name != ".ses"]
        for folder in folders:
            if folder.is_dir():
                found += [path for path in folder.iterdir() if path.name.startswith(".")]
        return found


@dataclass(frozen=True)
class Writer:
    """A command that writes one result.

    Attributes:
        name: Of the command.
        command: Its command line.
        out: What it writes.
        state: What of the result tells old from new; DamageError if it is neither whole.
        reset: Puts the old result (True) or nothing (False) in place.
        folders: All that it writes to.
        grows: Whether an interrupted run leaves a part that the next one goes on from.
        replaces: Whether it replaces an old result.
        judges: Whether its exit status may tell that a result is bad, too.
        varies: Whether every run gives another result.
        cache: What it keeps for the next run.
        seconds: About how long it takes.
    """

    name: str
    command: list[str]
    out: Path
    state: Callable[[], str]
    reset: Callable[[bool], None]
    folders: tuple[Path, ...]
    grows: bool = False
    replaces: bool = True
    judges: bool = False
    varies: bool = False
    cache: Path | None = None
    seconds: float = 3.0

    def reset_output(self) -> None:
        """Remove the result, and nothing that is kept for the next run."""
        remove(self.out)


def bundle_state(path: Path) -> str:
    """SHA-256 of a bundle's manifest, after checking every file against it; "absent" if none."""
    if not path.exists():
        return "absent"
    try:
        Bundle.read(path)
    except HatError as error:
        raise DamageError(str(error)) from None
    return sha256_of(path / MANIFEST)


def index_state(path: Path) -> list[str]:
    """Identifiers in an index, after checking every record."""
    if not path.exists():
        return []
    try:
        with ImageIndex.open(path) as index:
            index.file.verify_records()
            names = list(index.ids)
    except HatError as error:
        raise DamageError(str(error)) from None
    if len(set(names)) != len(names):
        raise DamageError(f"{path}: an image is there twice")
    return names


def report_state(path: Path) -> str:
    """The lasting facts of a parity report; "absent" if there is none."""
    if not path.exists():
        return "absent"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))["data"]
        return json.dumps({name: data[name] for name in LASTING}, sort_keys=True)
    except (ValueError, KeyError) as error:
        raise DamageError(f"{path}: {error!r}") from None


def _copied(old: Path, out: Path, keep: bool) -> None:
    for path in (out, *out.parent.glob(".*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if keep and old.is_dir():
        shutil.copytree(old, out)
    elif keep:
        shutil.copyfile(old, out)


def writers(place: Place, images: int = 1000) -> list[Writer]:
    """Export, quantization, indexing and parity, each with an old result to lose."""
    threads = ("--threads", place.threads)
    bundle = place.bundle()
    found = []
    out = place.folder / "onnx" / "bundle"
    older = place.made("older", "hat-export", "onnx", "--attention", "decomposed", MODEL)
    found.append(_bundle_writer("onnx", older, out, "onnx", MODEL, out, "--overwrite", *threads))
    out = place.folder / "quantize" / "int8"
    quantize = ("quantize", "--no-preflight", "--overwrite", *threads)
    weights = place.made(
        "int8", "hat-export", "quantize", "--no-preflight", "--mode", "int8-weights", bundle
    )
    found.append(_bundle_writer("quantize", weights, out, *quantize, bundle, out))
    found.append(_index_writer(place, bundle, images))
    found.append(_parity_writer(place, bundle, weights))
    return found


def _bundle_writer(name: str, old: Path, out: Path, *arguments: object) -> Writer:
    return Writer(
        name,
        program("hat-export", *arguments),
        out,
        lambda: bundle_state(out),
        lambda keep: _copied(old, out, keep),
        (out.parent,),
    )


def _index_writer(place: Place, bundle: Path, images: int) -> Writer:
    out = place.folder / "index" / "drawings.hatidx"
    listed = place.inputs / f"{images}"
    if not listed.is_dir():
        import zipfile

        with zipfile.ZipFile(DATA / "images_test.zip") as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")][:images]
            archive.extractall(listed, names)
    command = ("index", bundle, listed, out, "--batch", 4, "--commit", 8, "--threads", 1)
    return Writer(
        "index",
        program("hat-export", *command),
        out,
        lambda: "\n".join(index_state(out)) or "absent",
        lambda keep: _copied(out, out, False),
        (out.parent,),
        grows=True,
    )


def _parity_writer(place: Place, bundle: Path, candidate: Path) -> Writer:
    out = place.folder / "parity" / "report.json"
    cache = place.folder / "parity-cache"
    options = ("--data", DATA, "--limit", 200, "--cache", cache, "--threads", place.threads)
    options += ("--max-drop", "rsum=50", "--report", out)

    def reset(keep: bool) -> None:
        shutil.rmtree(cache, ignore_errors=True)
        _copied(old, out, keep)

    old = place.inputs / "older-report.json"
    if not old.exists():
        # Of fewer images, so that it can be told from the new one.
        place.made(
            "older-report.json",
            *("hat-bench", "parity", bundle, candidate, "--data", DATA, "--limit", 100),
            *("--max-drop", "rsum=50", "--no-cache", "--report"),
        )
    return Writer(
        "parity",
        program("hat-bench", "parity", bundle, candidate, *options),
        out,
        lambda: report_state(out),
        reset,
        (out.parent, cache),
        cache=cache,
    )


def writers_of_all(place: Place) -> list[Writer]:
    """Every command that writes something, on few data."""
    found = {one.name: one for one in writers(place, images=100)}
    bundle = place.bundle()
    candidate = place.inputs / "int8"
    index = place.made(
        "drawings.hatidx", "hat-export", "index", bundle, place.inputs / "100", "--threads", 1
    )
    folder, threads = place.folder, ("--threads", 1)

    out = folder / "trt" / "engines"
    engines = folder / "engine-cache"
    build = ("--precision", "fp32", "--sm", 80, "--runtime", "tensorrt-rtx", "--cache", engines)
    found["trt"] = replace(
        _bundle_writer("trt", candidate, out, "trt", bundle, out, *build, "--overwrite", *threads),
        folders=(out.parent, engines),
        cache=engines,
        varies=True,  # the manifest tells how long a build took
        seconds=8.0,
    )

    out = folder / "triton" / "models"
    found["triton"] = Writer(
        "triton",
        program("hat-export", "triton", bundle, out),
        out,
        lambda: repository_state(folder / "triton" / "models"),
        lambda keep: _copied(folder, folder / "triton" / "models", False),
        (out.parent,),
        replaces=False,
        seconds=1.0,
    )

    out = folder / "delete" / "drawings.hatidx"
    names = index_state(index)[:40]
    found["index-delete"] = Writer(
        "index-delete",
        program("hat-export", "index-delete", out, *names, "--compact"),
        out,
        lambda: "\n".join(index_state(folder / "delete" / "drawings.hatidx")) or "absent",
        lambda keep: _copied(index, folder / "delete" / "drawings.hatidx", True),
        (out.parent,),
        judges=True,  # what was deleted before can't be deleted again
        seconds=0.3,
    )

    parity = place.inputs / "older-report.json"
    timings = place.made(
        "timings.json",
        *("hat-bench", "latency", bundle, "--seconds", 0, "--passes", 1, "--calls", 2),
        *("--cold-starts", 0, "--no-bound", "--quiet", "--report"),
    )
    quick = ("--seconds", 0, "--passes", 1, "--calls", 2, "--cold-starts", 0, "--no-bound")
    reports = {
        "search": ("hat-export", "search", index, "a red heart", *threads, "--html"),
        "latency": ("hat-bench", "latency", bundle, *quick, *threads, "--report"),
        "load": (
            *("hat-bench", "load", bundle, "--work", "texts", "--scenario", "SingleStream"),
            *("--seconds", 0.1, "--logs", folder / "load" / "logs", *threads, "--report"),
        ),
        "compare": ("hat-bench", "compare", parity, parity, "--report"),
        "report": ("hat-bench", "report", timings, parity, "--report"),
        "scoring": ("hat-bench", "scoring", "--rounds", 1, "--quiet", "--report"),
        "profile": ("hat-bench", "profile", bundle, "--runs", 1, *threads, "--report"),
    }
    for name, command in reports.items():
        found[name] = _report_writer(place, name, command)
    return list(found.values())


def repository_state(path: Path) -> str:
    """How many configurations a model repository has; DamageError unless all."""
    if not path.exists():
        return "absent"
    found = sorted(one.parent.name for one in path.glob("*/config.pbtxt"))
    if len(found) != 4:
        raise DamageError(f"{path}: only {found}")
    return " ".join(found)


def _report_writer(place: Place, name: str, command: Sequence[object]) -> Writer:
    out = place.folder / name / "report.html"
    old = place.inputs / "old.html"
    old.write_text("<!doctype html>old</html>\n", encoding="utf-8")

    def state() -> str:
        if not out.exists():
            return "absent"
        text = out.read_text(encoding="utf-8")
        if not text.startswith("<!doctype html>") or not text.endswith("</html>\n"):
            raise DamageError(f"{out}: half a page")
        return text

    program_name, *arguments = map(str, command)
    return Writer(
        name,
        program(program_name, *arguments, out),
        out,
        state,
        lambda keep: _copied(old, out, keep),
        (out.parent,),
        judges=True,
        varies=True,
        seconds=1.0,
    )


def timed(place: Place, writer: Writer) -> float:
    """Seconds of a run that nobody disturbs, from nothing to the new result."""
    began = time.monotonic()
    if place.start(writer.command).wait():
        log = place.log.read_text(encoding="utf-8")
        raise SystemExit(f"{' '.join(writer.command)} failed: {log[-2000:]}")
    return time.monotonic() - began
