"""What a command line says of trouble that isn't its own: memory, disks, readers that have gone."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_lines import command

#: A program whose only command raises what is put in.
PROGRAM = """
import typer
from hat_export.cli import common
app = typer.Typer()

@app.command()
def work() -> None:
    raise {error}

common.run_program(app, "work")
"""


def raising(error: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(error=error)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("MemoryError()", "out of memory"),
        ("RuntimeError('std::bad_alloc')", "out of memory"),
        ("RuntimeError('[ONNXRuntimeError] : 6 : Failed to allocate memory')", "out of memory"),
        ("ImportError('libx.so: failed to map segment from shared object')", "out of memory"),
        ('RuntimeError("can\'t start new thread")', "out of memory"),
        *(
            (f"OSError({number}, {os.strerror(number)!r}, '/a/file')", os.strerror(number))
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE)
        ),
        ("KeyboardInterrupt()", "interrupted"),
    ],
)
def test_trouble_of_the_machine_is_one_line(error: str, line: str) -> None:
    done = raising(error)
    assert done.returncode == (130 if "Interrupt" in error else 1)
    (told,) = done.stderr.splitlines()
    assert told.startswith("error: ")
    assert line in told
    if error.startswith("OSError"):
        assert "/a/file" in told
        assert "TMPDIR" in told


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    """Whoever reports it needs to say where it was."""
    done = raising("ValueError('that should not be')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("stream", ["closed pipe", "full disk"])
def test_nobody_takes_the_output(tiny_bundle: Path, stream: str) -> None:
    if stream == "closed pipe":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    inspect = command("hat-export", "inspect", tiny_bundle)
    done = subprocess.run(inspect, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 1
    if stream == "closed pipe":
        assert done.stderr == ""
    else:
        (told,) = done.stderr.splitlines()
        assert told.startswith("error: ")
