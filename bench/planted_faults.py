"""Does the suite still catch what it caught? Plants mistakes one by one and runs the tests named.

``planted_faults.toml`` lists the mistakes: text of the sources, what is put in its place, and the
functions of the tests that have to fail. Sources are found by the text and tests by their names, so
that both may move between modules. The checkout is copied, and the copy installed into an
environment of its own; the checkout itself isn't touched.

    python bench/planted_faults.py                      # all; goes on where it was interrupted
    python bench/planted_faults.py --only no-shift-mask --only tie-rule
    python bench/planted_faults.py --list
    python bench/planted_faults.py --check              # are all texts and tests still there?

Results are lines of JSON, one a fault. Exit status 1 if one wasn't caught, or could not be planted.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".toml")

#: Where mistakes are planted, and what is compiled there.
SOURCES = ("hat_export", "kernels", "cli", "demo")
COMPILED = (".cpp", ".hpp", ".h")
#: A test that takes longer hangs, which counts as caught: mistakes may well do that.
TIMEOUT_SECONDS = 300
#: Exit statuses of pytest: every test passed, a test failed.
PASSED, FAILED = 0, 1

#: What the worker says of a test that had to be killed.
HANGS = 99
#: Imports the libraries, which take most of a short test's time, and runs each order's pytest in a
#: fork of itself: the package and the tests are read anew in every one.
WORKER = """
import importlib, json, os, signal, sys, time
import pytest
for name in (
    "numpy", "PIL.Image", "onnx", "onnxruntime", "torch", "torchvision", "hypothesis", "tokenizers",
    "safetensors.torch", "timm.models.swin_transformer", "transformers.models.bert.modeling_bert",
):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
for line in sys.stdin:
    arguments, output, timeout = json.loads(line)
    child = os.fork()
    if not child:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = int(pytest.main(arguments))
        sys.stdout.flush()
        os._exit(status)
    until = time.monotonic() + timeout if timeout else float("inf")
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            print(os.waitstatus_to_exitcode(status), flush=True)
            break
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            print(99, flush=True)
            break
        time.sleep(0.05)
"""

_TEST = re.compile(r"^(?:async )?def (test_\w+)\(", re.MULTILINE)
_FAILURE = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", re.MULTILINE)


@dataclass(frozen=True)
class Fault:
    """A mistake.

    Attributes:
        name: What it is called.
        room: Package, or module beside packages, that it is planted in.
        old: Text that stands in exactly one source file, once.
        new: What is put in its place.
        tests: Names of test functions; one of them has to fail.
    """

    name: str
    room: str
    old: str
    new: str
    tests: tuple[str, ...]


class FaultError(Exception):
    """A mistake that can't be planted: the table is out of date, or the tests fail without it."""


def read_table(path: Path) -> list[Fault]:
    """Every mistake of a table.

    Args:
        path: TOML: per room and name a table with ``old``, ``new`` and ``tests``.
    """
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    faults = [
        Fault(name, room, entry["old"], entry["new"], tuple(entry["tests"]))
        for room, entries in content.items()
        for name, entry in entries.items()
    ]
    names = [fault.name for fault in faults]
    if len(set(names)) != len(names):
        raise FaultError(f"{path}: two faults of one name")
    return faults


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository that may be damaged.

    Attributes:
        root: Its folder.
        sources: Content of every source file.
        tests: Modules in which a test function of a name stands.
    """

    root: Path
    sources: Mapping[Path, str]
    tests: Mapping[str, Sequence[Path]]

    @classmethod
    def of(cls, root: Path) -> Checkout:
        """Read the sources and tests of a folder."""
        sources = {
            path: path.read_text(encoding="utf-8")
            for folder in SOURCES
            for path in sorted((root / folder).rglob("*"))
            if path.suffix in (".py", *COMPILED) and "build" not in path.relative_to(root).parts
        }
        tests: dict[str, list[Path]] = defaultdict(list)
        for path in sorted((root / "tests").rglob("test_*.py")):
            for name in set(_TEST.findall(path.read_text(encoding="utf-8"))):
                tests[name].append(path)
        return cls(root, sources, tests)

    def place(self, fault: Fault) -> Path:
        """The file that a mistake is planted in.

        Raises:
            FaultError: if its text isn't there exactly once.
        """
        found = {path: text.count(fault.old) for path, text in self.sources.items()}
        files = [path for path, count in found.items() if count]
        if sum(found.values()) != 1:
            where = ", ".join(str(path.relative_to(self.root)) for path in files) or "no file"
            raise FaultError(
                f"{fault.name}: its text stands {sum(found.values())} times, in {where}; expected "
                "once"
            )
        return files[0]

    def nodes(self, fault: Fault) -> list[str]:
        """What to tell pytest to run.

        Raises:
            FaultError: if there is no test of a name.
        """
        missing = [name for name in fault.tests if name not in self.tests]
        if missing:
            raise FaultError(f"{fault.name}: there is no test {missing[0]}")
        return [
            f"{path.relative_to(self.root)}::{name}"
            for name in fault.tests
            for path in self.tests[name]
        ]


class Laboratory:
    """A copy of the checkout with an environment in which it is installed.

    Args:
        folder: Where both lie; kept for the next run.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "checkout"
        self._environment = folder / "venv"
        self._build = folder / "build"
        #: There while a compiled mistake may be in the build: a killed run leaves it so.
        self._compiled_fault = folder / "compiled-fault"
        self._worker: subprocess.Popen[str] | None = None
        files = _run(["git", "ls-files", "-z", "-co", "--exclude-standard"], REPOSITORY).split("\0")
        present = [name for name in files if name and (REPOSITORY / name).is_file()]
        shutil.rmtree(self.root, ignore_errors=True)
        digest = hashlib.sha256()
        for name in present:
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target)
            if (REPOSITORY / name) not in (TABLE, Path(__file__).resolve()):
                digest.update(name.encode() + b"\0" + target.read_bytes())
        #: Tells results of this state of the repository from those of others; a table that grows
        #: is no other state.
        self.state = digest.hexdigest()[:16]
        self.checkout = Checkout.of(self.root)
        # Tests may ask git which files there are.
        _run(["git", "init", "-q"], self.root)
        _run(["git", "add", "--all"], self.root)

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self._environment / "bin" / "python"

    def install(self) -> None:
        """Make the environment: the libraries of this one, the package of the copy."""
        venv.create(self._environment, with_pip=False, clear=True)
        site = next((self._environment / "lib").glob("python3*/site-packages"))
        borrowed = [path for path in sys.path if path.endswith("site-packages")]
        # A folder on a line of its own: .pth files in it, such as an editable package's, don't run.
        (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
        if self._compiled_fault.exists():  # the copy's sources are older than what was built
            shutil.rmtree(self._build, ignore_errors=True)
        self.compile()
        self._compiled_fault.unlink(missing_ok=True)

    def compile(self) -> None:
        """Install the copy, which compiles what has changed of its kernels."""
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--no-deps"]
        options = ["--no-build-isolation", "--config-settings", f"build-dir={self._build}"]
        _run([*pip, *options, "--editable", "."], self.root)

    def test(self, nodes: Sequence[str], timeout: float = 0.0) -> tuple[int, str]:
        """Run tests until one fails; exit status of pytest, and what it printed.

        Args:
            nodes: What to run.
            timeout: Seconds after which a test hangs, which is a failure; 0 for never.
        """
        if self._worker is None or self._worker.poll() is not None:
            environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "400"}
            self._worker = subprocess.Popen(
                [str(self.python), "-c", WORKER],
                cwd=self.root,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        output = self._environment.with_name("output.txt")
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "--tb=line", *nodes]
        self._worker.stdin.write(json.dumps([arguments, str(output), timeout]) + "\n")
        self._worker.stdin.flush()
        status = int(self._worker.stdout.readline())
        if status == HANGS:
            return FAILED, f"FAILED {nodes[0]} hangs"
        return status, output.read_text(encoding="utf-8", errors="replace")

    def plant(self, fault: Fault) -> dict[str, Any]:
        """Plant a mistake, run its tests, take it out again.

        Returns:
            The row of the results.

        Raises:
            FaultError: if it can't be planted.
        """
        path, nodes = self.checkout.place(fault), self.checkout.nodes(fault)
        content = self.checkout.sources[path]
        started = time.monotonic()
        path.write_text(content.replace(fault.old, fault.new), encoding="utf-8")
        try:
            if path.suffix in COMPILED:
                self._compiled_fault.touch()
                self.compile()
            status, output = self.test(nodes, TIMEOUT_SECONDS)
        finally:
            path.write_text(content, encoding="utf-8")
            if path.suffix in COMPILED:
                self.compile()
                self._compiled_fault.unlink()
        if status not in (PASSED, FAILED):
            raise FaultError(f"{fault.name}: pytest ended with {status}:\n{output[-2000:]}")
        failure = _FAILURE.search(output)
        return {
            "fault": fault.name,
            "room": fault.room,
            "file": str(path.relative_to(self.root)),
            "caught": status == FAILED,
            "by": failure[1] if failure else None,
            "seconds": round(time.monotonic() - started, 1),
            "state": self.state,
        }


def _run(command: Sequence[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FaultError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done.stdout


def read_results(path: Path, state: str) -> list[dict[str, Any]]:
    """Rows of a results file that belong to a state of the repository."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["state"] == state]


def _append(path: Path, row: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def check(faults: Sequence[Fault], checkout: Checkout) -> list[str]:
    """What is out of date in the table."""
    wrong = []
    for fault in faults:
        for look in (checkout.place, checkout.nodes):
            try:
                look(fault)
            except FaultError as error:
                wrong.append(str(error))
    return wrong


def _check_without_faults(
    faults: Sequence[Fault],
    laboratory: Laboratory,
    before: Sequence[Mapping[str, Any]],
    out: Path,
) -> None:
    """See that the tests pass where nothing is planted: one that always fails catches nothing."""
    passed = {node for row in before for node in row.get("passed", ())}
    wanted = dict.fromkeys(node for fault in faults for node in laboratory.checkout.nodes(fault))
    nodes = [node for node in wanted if node not in passed]
    if not nodes:
        return
    print(f"{len(faults)} faults; first {len(nodes)} tests without them", flush=True)
    status, output = laboratory.test(nodes)
    if status != PASSED:
        raise FaultError(f"a test fails without any fault:\n{output[-2000:]}")
    _append(out, {"passed": nodes, "state": laboratory.state})


def run(faults: Sequence[Fault], laboratory: Laboratory, out: Path) -> int:
    """Plant what the results lack; the number of mistakes that weren't caught."""
    before = read_results(out, laboratory.state)
    done = {row["fault"]: row for row in before if "fault" in row}
    left = [fault for fault in faults if fault.name not in done]
    if left:
        laboratory.install()
        _check_without_faults(left, laboratory, before, out)
    for number, fault in enumerate(left, start=1):
        row = laboratory.plant(fault)
        _append(out, row)
        done[fault.name] = row
        verdict = f"caught by {row['by']}" if row["caught"] else "NOT CAUGHT"
        print(f"{number}/{len(left)} {fault.name}: {verdict}, {row['seconds']} s", flush=True)
    missed = [fault.name for fault in faults if not done[fault.name]["caught"]]
    rooms = len({fault.room for fault in faults})
    print(f"{len(faults) - len(missed)} of {len(faults)} faults in {rooms} rooms caught")
    for name in missed:
        print(f"  not caught: {name}")
    return len(missed)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="may be repeated")
    parser.add_argument("--list", action="store_true", help="list the faults")
    parser.add_argument("--check", action="store_true", help="only look for texts and tests")
    parser.add_argument("--scratch", type=Path, default=REPOSITORY / "build" / "planted_faults")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "runs" / "planted_faults.jsonl")
    options = parser.parse_args()
    try:
        faults = read_table(TABLE)
        unknown = set(options.only or ()) - {fault.name for fault in faults}
        if unknown:
            raise FaultError(f"no fault {sorted(unknown)[0]!r}; --list shows them")
        faults = [fault for fault in faults if not options.only or fault.name in options.only]
        if options.list:
            for fault in faults:
                print(f"{fault.room}: {fault.name}: {', '.join(fault.tests)}")
            return 0
        checkout = Checkout.of(REPOSITORY)
        if wrong := check(faults, checkout):
            raise FaultError("\n".join(wrong))
        if options.check:
            print(f"{len(faults)} faults have their place and their tests")
            return 0
        return 1 if run(faults, Laboratory(options.scratch.absolute()), options.out) else 0
    except FaultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
