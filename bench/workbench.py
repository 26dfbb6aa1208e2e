"""Where parts of the published figures are measured: models that are made once, commands, time."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import environment

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
Rows = list[dict[str, Any]]
DEMO = ROOT / "demo" / "hat-tiny-emojicap"
DATA = ROOT / "demo" / "emojicap"
MODULES = {"hat-export": "hat_export.cli.export", "hat-bench": "hat_export.cli.bench"}


class PartError(Exception):
    """A part that could not be measured."""


@dataclass
class Bench:
    """Where a run works, and how long it may.

    Attributes:
        out: Folder of models, logs and reports; kept, so that models are made once.
        quick: Whether only to try everything, on few samples.
        until: When it has to be over, on ``time.monotonic``'s clock.
        made: Models that are ready.
        beside: Versions of the tools that the part at hand is beside.
    """

    out: Path
    quick: bool
    until: float
    made: dict[str, Path] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)

    def run(
        self, *command: object, check: bool = True, python: Path = Path(sys.executable)
    ) -> None:
        """Run a Python program within the time left; its output goes to ``log.txt``.

        Args:
            command: A command of this project, ``-m`` and a module, or a script; then its options.
            check: Whether an exit status other than 0 is an error.
            python: Interpreter of the environment that it runs in.

        Raises:
            PartError: if it fails or is not done in time.
        """
        program, *rest = map(str, command)
        start = ["-m", MODULES[program]] if program in MODULES else [program]
        left = self.until - time.monotonic()
        shown = " ".join([Path(program).name, *rest])
        print(f"  $ {shown}", flush=True)
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n$ {shown}\n")
            log.flush()
            process = subprocess.Popen([python, *start, *rest], stdout=log, stderr=log)
            try:
                status = process.wait(timeout=max(1.0, left))
            except BaseException as error:
                process.kill()
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise PartError("no time left") from None
                raise
        if check and status:
            raise PartError(f"{shown} ended with {status}; see {self.out / 'log.txt'}")

    def report(self, name: str) -> Path:
        """Where a part's JSON report goes; an old one is deleted."""
        path = self.out / f"{name}.json"
        path.unlink(missing_ok=True)
        return path

    def written(self, path: Path) -> dict[str, Any]:
        """A JSON file that a command wrote."""
        if not path.is_file():
            raise PartError(f"{path} was not written; see {self.out / 'log.txt'}")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    def tiny(self) -> Path:
        """The demo model's bundle."""
        return self._model("tiny", DEMO)

    def checkpoint(self) -> Path:
        """A checkpoint of official size."""
        path = self.out / "hat-stand-in.ckpt"
        if not path.is_file():
            self.run(HERE / "official_checkpoint.py", path)
        return path

    def official(self) -> Path:
        """Its bundle in standard operators."""
        return self._model("standard", self.checkpoint(), "--require-fused")

    def packed(self) -> Path:
        """Its bundle for ONNX Runtime on a CPU."""
        return self._model("packed", self.checkpoint(), "--target", "onnxruntime")

    def peers(self) -> Path:
        """The interpreter of an environment that has the tools that figures are beside.

        Raises:
            PartError: if they are not there and can't be installed.
        """
        folder = self.out / "peers-environment"
        try:
            python = environment.ready(folder, self.out / "log.txt")
        except environment.MissingPeersError as error:
            raise PartError(str(error)) from None
        self.beside = dict(environment.PINNED)
        return python

    def _model(self, name: str, source: Path, *options: str) -> Path:
        """A bundle, exported once a run: the exporter may have changed since the last."""
        if name not in self.made:
            target = self.out / name
            self.run("hat-export", "onnx", source, target, "--overwrite", "--quiet", *options)
            self.made[name] = target
        return self.made[name]
