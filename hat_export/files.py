"""Writing results so that an interruption leaves the old state or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

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
    # Named before it is made: an interrupt right after the making must find it to remove it.
    work = target.parent / f".{target.name}.partial-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(mode=0o700)
        yield work
        work.chmod(0o755)
        _sync(work)
        _replace(work, target, overwrite)
    except OSError as error:
        raise _unwritable(target, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def write_text(path: Path, text: str) -> None:
    """Write a file at once: through a temporary file beside it and a rename.

    Raises:
        OutputError: if it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise _unwritable(path, error) from None


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an ``.npz`` with fixed dates, so that equal content gives equal bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def _sync(folder: Path) -> None:
    """Have the disk hold every byte before the rename makes the result visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(work: Path, target: Path, overwrite: bool) -> None:
    if not (overwrite and target.exists()):
        work.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent)) / "bundle"
    target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        old.rename(target)
        raise
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _unwritable(target: Path, error: OSError) -> OutputError:
    reason = error.strerror or str(error)
    return OutputError(f"{target}: can't be written ({reason}); nothing was left behind")
