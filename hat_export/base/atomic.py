"""Work in progress beside its target: locked while its process lives, removed once it has died.

A result is made under a name of its own and takes its place in one step of the file system, so that
a kill at any moment leaves the old result or the new one. What a killed process leaves under such a
name is recognised by its lock, which ended with the process, and removed by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

#: The file in a folder whose lock is that of the folder.
FOLDER_LOCK = "lock"

#: What a file system without locks says when it is asked for one.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2
#: What ``renameat2`` says where the kernel or the file system can't do it.
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder ``.NAME.partial-XXXX``, removed at the end whatever happens.

    What killed processes have left of the same name is removed first.

    Args:
        parent: Where; must exist.
        name: What it will be, or what it is for.

    Raises:
        OSError: if it can't be made.
    """
    with _partial(parent, name, lambda path: path.mkdir(mode=0o700)) as path:
        yield path


@contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """A new empty file beside ``target``, in everything else like :func:`partial_folder`."""
    with _partial(
        target.parent, target.name, lambda path: path.touch(0o600, exist_ok=False)
    ) as path:
        yield path


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what a command needs only while it runs, in the system's temporary folder."""
    with partial_folder(Path(tempfile.gettempdir()), "hat-export") as path:
        yield path


@contextmanager
def locked_folder(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Keep others out of a folder who ask in the same way; waits for one who is there already.

    The lock is that of the folder's file :data:`FOLDER_LOCK`, which stays.

    Args:
        folder: Must exist.
        waiting: Called once if somebody is there.

    Raises:
        OSError: if the lock's file can't be opened.
    """
    import filelock

    # No marker file where the file system has no locks: one that a killed run left would stay.
    lock = filelock.FileLock(folder / FOLDER_LOCK, fallback_to_soft=False)
    try:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        # Where there are no locks, runs at the same time are on their own.
    try:
        yield
    finally:
        lock.release()


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder, whatever it is called, until it or the process ends.

    A lock of the thing itself, unlike one of another file beside it, is there wherever the thing
    can be opened, holds under every name that it has, and leaves nothing behind.

    Returns:
        Whether it was free.

    Raises:
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def publish(work: Path, target: Path, replace: bool) -> None:
    """Give a finished result its name in one step.

    An existing target that is replaced lies at ``work`` afterwards.

    Args:
        work: A file or folder made by this module, on the same file system.
        target: Its name.
        replace: Whether an existing target may be replaced.

    Raises:
        FileExistsError: if there is a target and it may not be replaced.
        OSError: if it can't be renamed.
    """
    while True:
        try:
            _rename(work, target, _NOREPLACE)
            return
        except FileExistsError:
            if not replace:
                raise
        try:
            _rename(work, target, _EXCHANGE)
            return
        except FileNotFoundError:
            if not work.exists():
                raise
            # The target went away in between: once more.


def sweep(parent: Path, name: str) -> None:
    """Remove what killed processes have left of a name; errors are left to those who come after."""
    with suppress(OSError):
        _restore(parent, name)
        for path in _matching(parent, name, "partial"):
            with suppress(OSError):
                _remove_if_dead(path)


@contextmanager
def _partial(parent: Path, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    sweep(parent, name)
    while True:
        # Named before it is made: an interrupt right after the making must find it to remove it.
        path = parent / f".{name}.partial-{secrets.token_hex(8)}"
        try:
            make(path)
            lock = _locked(path)
            if lock is None:
                continue
            try:
                yield path
            finally:
                os.close(lock)
            return
        finally:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, as far as it goes."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock; None if a sweep took the path before it was locked."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        # Where there are no locks nothing is ever swept.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
    except FileNotFoundError:
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _remove_if_dead(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid == os.geteuid() and try_lock(descriptor):
            remove(path)
    finally:
        os.close(descriptor)


def _matching(parent: Path, name: str, kind: str) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(name)}\.{kind}-[0-9a-f]{{16}}")
    with os.scandir(parent) as entries:
        return [parent / entry.name for entry in entries if pattern.fullmatch(entry.name)]


def _rename(work: Path, target: Path, flag: int) -> None:
    """``renameat2``, or what comes closest where there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    code = errno.ENOSYS
    if hasattr(libc, "renameat2"):
        paths = os.fsencode(work), os.fsencode(target)
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flag) == 0:
            return
        code = ctypes.get_errno()
    if code not in _UNSUPPORTED:
        raise OSError(code, os.strerror(code), str(target))
    if flag == _EXCHANGE:
        _exchange_in_steps(work, target)
    elif target.exists() or target.is_symlink():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    else:
        work.rename(target)


def _exchange_in_steps(work: Path, target: Path) -> None:
    """Without a kernel that exchanges: between two renames the old result has another name."""
    old = target.parent / f".{target.name}.old-{secrets.token_hex(8)}"
    target.rename(old)
    try:
        work.rename(target)
    except BaseException:
        old.rename(target)
        raise
    old.rename(work)


def _restore(parent: Path, name: str) -> None:
    """Undo an exchange in steps that was killed in between, or finish it."""
    target = parent / name
    for old in _matching(parent, name, "old"):
        if target.exists():
            remove(old)
        else:
            old.rename(target)
