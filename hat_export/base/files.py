"""Writing results so that an interruption leaves the old state or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hat_export.base.atomic import partial_file, partial_folder, publish
from hat_export.errors import OutputError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``target`` that takes its place if the block succeeds.

    On any exception, Ctrl-C included, the temporary folder is removed and an existing target is
    left as it was.

    Args:
        target: Where the folder shall be in the end.
        overwrite: Whether an existing folder may be replaced.

    Raises:
        OutputError: if the target exists, or its parent can't be written to, or the disk is full.
    """
    check_target(target, overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(target.parent, target.name) as work:
            yield work
            work.chmod(0o755)
            _sync(work)
            publish(work, target, overwrite)
            sync_folder(target.parent)
    except OSError as error:
        raise _unwritable(target, error) from None


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse a target that exists before any work is spent on it."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target}: exists and is no folder; choose another output")
    if target.exists() and not overwrite:
        raise OutputError(f"{target}: exists already; choose another output or pass --overwrite")
    if target.exists() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        raise OutputError(
            f"{target}: holds files but no bundle; it is not overwritten, choose another output"
        )
    check_writable(target)


def check_writable(target: Path) -> None:
    """Refuse a target whose folder can't be written to before any work is spent on it.

    Raises:
        OutputError: naming the folder.
    """
    folder = target.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{target}: can't be written ({folder} is no folder); choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(
            f"{target}: can't be written ({folder} is read-only); choose another output"
        )


def write_text(path: Path, text: str) -> None:
    """Write a file at once: through a temporary file beside it and a rename.

    Raises:
        OutputError: if it can't be written.
    """
    # Half a surrogate pair, from somebody's JSON, is no reason to lose a report.
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file at once, like :func:`write_text`.

    Raises:
        OutputError: if it can't be written.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: exists and is no file; choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as work:
            with work.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            work.chmod(0o644)
            work.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _sync(folder: Path) -> None:
    """Have the disk hold every byte before the rename makes the result visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the disk hold a new name too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{target}: can't be written ({reason}); nothing was left behind")
