"""Results appear in one step, and what killed processes leave is removed by the next."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest

from hat_export.base import atomic
from hat_export.base.atomic import FOLDER_LOCK, locked_folder, partial_folder, publish
from hat_export.base.files import new_folder, write_text
from hat_export.errors import IndexFileError
from hat_export.index.record_file import RecordFile

#: Every operation on files, as Python's audit events and libc's renameat2 name it, kills the
#: process when its number comes; what the arguments name is done before.
KILLER = """
import os, signal, sys
from pathlib import Path
from hat_export.base import atomic
from hat_export.base.files import new_folder, write_text
from hat_export.index.record_file import RecordFile

left, folder, what = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
EVENTS = ("open", "os.rename", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.scandir")

def step(event, arguments=None):
    global left
    if event in EVENTS:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

rename = atomic._rename

def stepping_rename(*arguments):
    step("os.rename")
    rename(*arguments)
    step("os.rename")

atomic._rename = stepping_rename
if what == "steps":  # a file system that can't exchange
    def stepping_rename(work, target, flag):
        if flag == 2:
            atomic._exchange_in_steps(work, target)
        elif target.exists():
            raise FileExistsError
        else:
            work.rename(target)
    atomic._rename = stepping_rename
target = folder / "target"
sys.addaudithook(step)
if what in ("folder", "steps"):
    with new_folder(target, overwrite=True) as work:
        for name in ("a", "manifest.json"):
            (work / name).write_text("new")
elif what == "file":
    write_text(target, "new")
else:
    file = RecordFile.open(target)
    file.delete(["one"])
    file.compact()
    file.close()
left = 1 << 30
print("finished")
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def attempt(moment: int, folder: Path, what: str) -> bool:
    """Write, killed at a moment; whether it was finished before."""
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(moment), str(folder), what],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return "finished" in done.stdout


def make_old(target: Path, what: str) -> None:
    if what in ("folder", "steps"):
        with new_folder(target) as work:
            for name in ("a", "manifest.json"):
                (work / name).write_text("old")
    elif what == "file":
        write_text(target, "old")
    else:
        file = RecordFile.create(target, {"made": "for a test"})
        file.append([b"1", b"2"], ["one", "two"])
        file.close()


def content(target: Path, what: str) -> str:
    if what in ("folder", "steps"):
        return "".join(sorted({(target / name).read_text() for name in ("a", "manifest.json")}))
    if what == "file":
        return target.read_text()
    file = RecordFile.open(target)
    file.verify_records()
    return "old" if file.ids == ["one", "two"] else "new" if file.ids == ["two"] else "mixture"


@pytest.mark.parametrize("what", ["folder", "steps", "file", "compact"])
def test_a_kill_at_every_step_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    moment, seen = 0, set()
    while True:
        make_old(target, what)
        finished = attempt(moment, tmp_path, what)
        if what == "steps":
            # Between two renames the old one has another name: the next run gives it back.
            atomic.sweep(tmp_path, "target")
        seen.add(content(target, what))
        assert len(names(tmp_path)) <= 2  # the result, and what one kill has left
        atomic.remove(target)
        if finished:
            break
        moment += 1
    assert seen == {"old", "new"}
    assert moment > 5
    assert names(tmp_path) == set()


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    (tmp_path / ".target.partial-0123456789abcdef").mkdir()
    (tmp_path / ".target.partial-0123456789abcdef" / "big").write_text("x")
    (tmp_path / ".other.partial-0123456789abcdef").mkdir()
    (tmp_path / ".target.partial-mine").mkdir()
    with partial_folder(tmp_path, "target") as first, partial_folder(tmp_path, "target") as second:
        assert first.is_dir()
        assert second.is_dir()
        kept = {".other.partial-0123456789abcdef", ".target.partial-mine"}
        assert names(tmp_path) == {first.name, second.name, *kept}
    assert names(tmp_path) == kept


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    (tmp_path / ".target.partial-0123456789abcdef").symlink_to(tmp_path / "photos")
    with partial_folder(tmp_path, "target"):
        pass
    assert (tmp_path / "photos" / "cat.png").exists()


def test_of_two_that_begin_one_gets_the_name(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with partial_folder(tmp_path, "target") as first, partial_folder(tmp_path, "target") as second:
        (first / "a").write_text("1")
        publish(first, target, replace=False)
        with pytest.raises(FileExistsError):
            publish(second, target, replace=False)
        publish(second, target, replace=True)
        assert (second / "a").read_text() == "1"  # the old one, to be removed
    assert names(tmp_path) == {"target"}
    assert names(target) == set()


def test_an_append_to_an_index_that_is_compacted_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "index"
    make_old(path, "compact")
    first = RecordFile.open(path)
    lock = fcntl.flock

    def replace_then_lock(file: BinaryIO, operation: int) -> None:
        same = path.read_bytes()
        path.unlink()
        path.write_bytes(same)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", replace_then_lock)
    with pytest.raises(IndexFileError, match="changed by another process"):
        first.append([b"3"], ["three"])


#: Holds a folder's lock until it is killed.
HOLDER = """
import sys, time
from pathlib import Path
from hat_export.base.atomic import locked_folder

with locked_folder(Path(sys.argv[1]), lambda: print("waiting", flush=True)):
    print("there", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_of_one_process_until_it_dies(tmp_path: Path) -> None:
    def holder() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with holder() as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "there\n"
        with holder() as second:
            assert second.stdout is not None
            assert second.stdout.readline() == "waiting\n"
            first.kill()
            assert second.stdout.readline() == "there\n"
            second.kill()
    with locked_folder(tmp_path, lambda: pytest.fail("nobody is there any more")):
        assert names(tmp_path) == {FOLDER_LOCK}


@pytest.mark.parametrize("reason", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_folder_is_used_where_the_file_system_has_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: int
) -> None:
    def without_locks(file: int, operation: int) -> None:
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(fcntl, "flock", without_locks)
    with locked_folder(tmp_path, lambda: pytest.fail("nobody is there")):
        pass
    # Nothing that would keep the next run out.
    assert names(tmp_path) <= {FOLDER_LOCK}


def test_a_folder_whose_lock_cannot_be_opened_is_not_used(tmp_path: Path) -> None:
    (tmp_path / FOLDER_LOCK).mkdir()
    with (
        pytest.raises(OSError, match=r".+"),
        locked_folder(tmp_path, lambda: pytest.fail("nobody is there")),
    ):
        pytest.fail("it isn't locked")
