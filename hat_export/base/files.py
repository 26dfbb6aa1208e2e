"""Writing results so that an interruption leaves the old state or the new one, never a mixture."""

from __future__ import annotations

import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import numpy as np

from hat_export.base.atomic import partial_file, partial_folder, publish
from hat_export.errors import OutputError

#: Arrays of a file that is read whole; the self-test of the official model takes 2 MB.
MAX_ARRAY_BYTES = 256 << 20


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
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: exists and is no file; choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as work:
            # Half a surrogate pair, from somebody's JSON, is no reason to lose a report.
            with work.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            work.chmod(0o644)
            work.replace(path)
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


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote, from anybody's file: no pickles, no bombs.

    numpy alone would make room for whatever a header states before it reads a byte.

    Raises:
        ValueError: if it is no such file, or its arrays are not what their headers say.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(info.file_size for info in members) > MAX_ARRAY_BYTES:
                raise ValueError(f"more than {MAX_ARRAY_BYTES} bytes")
            for info in members:
                with archive.open(info) as file:
                    content = file.read(MAX_ARRAY_BYTES)
                arrays[info.filename.removesuffix(".npy")] = _array(content)
    except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from None
    return arrays


def _array(content: bytes) -> np.ndarray:
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"an array of format {version}")
    try:
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    except (SyntaxError, TypeError, RecursionError, TokenError) as error:
        raise ValueError(f"an array with a damaged header ({error})") from None
    if dtype.hasobject or fortran:
        raise ValueError(f"an array of {dtype}, which isn't read")
    left = content[file.tell() :]
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(left):
        raise ValueError(f"an array of {shape} in {len(left)} bytes")
    return np.frombuffer(left, dtype).reshape(shape)


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
