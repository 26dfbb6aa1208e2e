"""What is shown of long work: on a terminal, in a log, and when nothing shall be."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.console import Console

from hat_export.base import progress as progress_module
from hat_export.base.progress import PlainLines, TerminalBar, progress_on_stderr
from hat_export.errors import InputError

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"

#: A command that fails in the middle of a loop.
FAILING = """
import typer
from hat_export.cli import common
from hat_export.errors import InputError

app = typer.Typer()

@app.command()
def work() -> None:
    progress = common.show_progress(quiet=False)
    progress.count("things", 1, 10)
    raise InputError("no more things")

common.run_program(app, "work")
"""


def clock_of(*moments: float) -> Callable[[], float]:
    return iter(moments).__next__


def frames(text: str) -> list[str]:
    """Every text that a terminal showed in one line, in order."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


def terminal(clock: Callable[[], float]) -> tuple[TerminalBar, io.StringIO]:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80, legacy_windows=False)
    return TerminalBar(console, clock), stream


def test_lines_tell_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainLines(clock=clock_of(0.0, 0.0, 20.0, 60.0, 70.0, 80.0))
    for done in (10, 30, 40, 100):
        progress.count("things", done, 100)
    progress.count("things", 10, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "  things: 10 of 100",
        "  things: 30 of 100, 70 s left",
        "  things: 40 of 100, 120 s left",
        "  things: 100 of 100",
        "  things: 10 of 100",
    ]


def test_lines_of_a_loop_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    progress = PlainLines(clock=clock_of(0.0, *map(float, range(40))))
    progress.step("beginning \x1b[2J")
    for done in range(1, 41):
        progress.count("things", done, 40)
    assert capsys.readouterr().err.splitlines() == [
        "  beginning \\x1b[2J",
        "  things: 1 of 40",
        "  things: 16 of 40, 24 s left",
        "  things: 31 of 40, 9 s left",
        "  things: 40 of 40",
    ]


def test_a_terminal_shows_a_bar_and_steps_above_it() -> None:
    now = [0.0]
    progress, stream = terminal(lambda: now[0])
    for done in range(1, 5):
        progress.count("things", done, 4)
        if done == 2:
            progress.step("half \x1b[2J [red]done")
        now[0] += 1.0
    progress.count("others", 1, 2)
    progress.close()
    shown = frames(stream.getvalue())
    assert "  half \\x1b[2J [red]done" in shown
    things = [line for line in shown if line.startswith("  things")]
    assert [re.findall(r"\d of \d", line)[0] for line in dict.fromkeys(things)] == [
        *("1 of 4", "2 of 4", "3 of 4", "4 of 4")
    ]
    assert "0:00:01" in things[-2]  # left, at a second each
    assert re.search(r"others .* 1 of 2", shown[-1])
    assert stream.getvalue().count(HIDE_CURSOR) == stream.getvalue().count(SHOW_CURSOR) == 2
    assert stream.getvalue().endswith(SHOW_CURSOR)


def test_a_bar_is_drawn_a_few_times_a_second() -> None:
    now = [0.0]
    progress, stream = terminal(lambda: now[0])
    for done in range(1, 1001):
        progress.count("things", done, 1000)
        now[0] += 0.001
    drawn = len(re.findall(r"things", stream.getvalue()))
    assert 5 <= drawn <= 8  # when it begins, every 0.2 of a second, and at the end


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = progress_on_stderr(quiet=True)
    progress.step("beginning")
    progress.count("things", 1, 2)
    progress.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(True, "xterm", TerminalBar), (True, "dumb", PlainLines), (False, "xterm", PlainLines)],
)
def test_a_bar_is_for_terminals_that_can_draw_it(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, kind: type
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(progress_module.sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    assert isinstance(progress_on_stderr(quiet=False), kind)


def test_an_error_gives_the_terminal_back() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", FAILING],
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "80"},
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        assert process.wait() == InputError.exit_code
    os.close(ours)
    text = shown.decode()
    assert text.index(HIDE_CURSOR) < text.index(SHOW_CURSOR) < text.index("error: no more things")
    assert frames(text)[-1] == "error: no more things"
