"""A script beside a report that runs the same comparison again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hat_export.base.files import sha256_of, write_text
from hat_export.base.packages import package_versions
from hat_export.bundle.bundle import MANIFEST, is_bundle
from hat_export.report.pages import render

#: Name of the script.
SCRIPT = "reproduce.sh"

#: A folder of more files than this isn't hashed: it holds pictures.
MOST_FILES = 32


def reproduction(
    command: Sequence[str], inputs: Mapping[str, Path], folder: Path, versions: Mapping[str, str]
) -> str:
    """The script's text.

    Args:
        command: Program and arguments, as they were given.
        inputs: What the run read, by the name of its role.
        folder: Where the command was started; relative paths start there.
        versions: Of the software that was used.

    Returns:
        A bash script: checks that the inputs are the same, names what else differs, runs.
    """
    checks = [
        (role, shlex.quote(str(file)), sha256_of(file))
        for role, path in inputs.items()
        for file in _files(path)
    ]
    return render(
        "reproduce.sh.jinja",
        python=sys.version.split()[0],
        versions=versions,
        folder=shlex.quote(str(folder)),
        checks=checks,
        command=shlex.join(command),
    )


def _files(path: Path) -> list[Path]:
    """The files by which an input is recognised; a bundle's manifest holds the others' hashes."""
    if is_bundle(path):
        return [path / MANIFEST]
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file())
    return files if len(files) <= MOST_FILES else []


def write_reproduction(
    report: Path, command: Sequence[str], inputs: Mapping[str, Path], folder: Path
) -> Path:
    """Write the script beside a report.

    Args:
        report: A report's path.
        command: As for :func:`reproduction`.
        inputs: As for :func:`reproduction`.
        folder: As for :func:`reproduction`.

    Returns:
        Its path.

    Raises:
        OutputError: if it can't be written.
    """
    path = report.parent / SCRIPT
    write_text(path, reproduction(command, inputs, folder, package_versions()))
    path.chmod(0o755)
    return path
