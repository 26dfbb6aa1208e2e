"""The environment of the tools that the project's figures stand beside.

It has the libraries of the environment that it is made from, so that all rows of a table share
them, and the pinned tools besides. Run by an interpreter, this module prints what that one lacks.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Tool -> the version that is compared with.
PINNED = {"openvino": "2026.4.1", "nncf": "3.4.0"}
#: Libraries that every row of a table uses: a tool that wants another version is not installed.
SHARED = ("numpy", "onnx", "onnxruntime", "torch")


class MissingPeersError(Exception):
    """Tools that are not there: their names, and the command that installs them."""


def lacking(pinned: dict[str, str]) -> list[str]:
    """Those that this interpreter doesn't have at the pinned version, as pip's requirements."""
    return [f"{name}=={wanted}" for name, wanted in pinned.items() if _installed(name) != wanted]


def require() -> None:
    """End the program where this interpreter lacks a tool that its table is beside."""
    if missing := lacking(PINNED):
        sys.exit(f"error: {_message(missing, Path(sys.executable))}")


def ready(folder: Path, log: Path) -> Path:
    """The interpreter of an environment with the pinned tools, which is made where it isn't there.

    Args:
        folder: Of the environment.
        log: What installing says is added to this file.

    Raises:
        MissingPeersError: A tool could not be installed.
    """
    python = folder / "bin" / "python"
    if python.exists() and not _lacking_in(python):
        return python
    print(f"  installing {', '.join(PINNED)} into {folder}", flush=True)
    with log.open("a", encoding="utf-8") as output:
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", folder],
            stdout=output,
            stderr=output,
            check=True,
        )
        _borrow(folder)
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{line}\n" for line in _shared()), encoding="utf-8")
        wanted = [f"{name}=={pin}" for name, pin in PINNED.items()]
        subprocess.run(
            [python, "-m", "pip", "install", "--constraint", constraints, *wanted],
            stdout=output,
            stderr=output,
            check=False,  # what is missing then, is named
        )
    if missing := _lacking_in(python):
        raise MissingPeersError(f"{_message(missing, python)}; what pip said is in {log}")
    return python


def _borrow(folder: Path) -> None:
    """Let an environment use the libraries of this one, pip among them; its own come first."""
    (own,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import site; site.addsitedir({path!r})\n" for path in here]
    (own / "borrowed.pth").write_text("".join(lines), encoding="utf-8")


def _shared() -> list[str]:
    """The shared libraries at the versions that are installed here."""
    return [f"{name}=={found}" for name in SHARED if (found := _installed(name))]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lacking_in(python: Path) -> list[str]:
    pins = [f"{name}=={pin}" for name, pin in PINNED.items()]
    done = subprocess.run([python, __file__, *pins], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.split()


def _message(missing: list[str], python: Path) -> str:
    command = shlex.join([str(python), "-m", "pip", "install", *missing])
    return f"{' and '.join(missing)} not installed: {command}"


def main() -> None:
    """Print those of the requirements given that this interpreter lacks."""
    pinned = dict(argument.split("==") for argument in sys.argv[1:])
    print(*lacking(pinned), sep="\n")


if __name__ == "__main__":
    main()
