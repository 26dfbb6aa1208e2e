"""How far long work is: one protocol for those who work, and the ways to show it.

Whatever takes long takes a :class:`Progress` and tells it two things: that a step has begun, and
how much of a loop is done. On a terminal the loop is a bar of ``rich.progress``; elsewhere, in a
log, it is a line now and then; by default nothing is shown.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from hat_export.base.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

#: Seconds between two lines of a loop that isn't on a terminal.
LINE_SECONDS = 15.0
#: Seconds between two drawings of a bar. No thread draws it: what is timed shall not share a core
#: with its own progress.
BAR_SECONDS = 0.2
#: Values of TERM on which nothing can be drawn again.
_PLAIN_TERMINALS = ("dumb", "unknown")


class Progress(Protocol):
    """What long work tells while it goes on."""

    def step(self, message: str) -> None:
        """A step has begun; one line."""

    def count(self, what: str, done: int, total: int) -> None:
        """So many of a loop's items are done.

        Another ``what``, or a number that hasn't grown, begins another loop.
        """


class Silent:
    """Shows nothing."""

    def step(self, message: str) -> None:
        """Nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


#: Of work that nobody watches.
SILENT = Silent()


class PlainLines:
    """A line a step, and one every :data:`LINE_SECONDS` of a loop, with the time left.

    Args:
        stream: Where to; default: standard error.
        clock: Seconds that only grow.
    """

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._what = ""
        self._began, self._shown = clock(), -math.inf
        self._first = self._done = 0

    def step(self, message: str) -> None:
        """Print it."""
        self._print(printable(message))

    def count(self, what: str, done: int, total: int) -> None:
        """Print how far the loop is, if it is time to."""
        now = self._clock()
        if what != self._what or done <= self._done:
            self._what, self._began, self._shown, self._first = what, now, -math.inf, done
        self._done = done
        last = done >= total
        if not last and now - self._shown < LINE_SECONDS:
            return
        self._shown = now
        seen = done - self._first  # since the first call, which only starts the clock
        pace = (now - self._began) / seen if seen else 0.0
        left = "" if last or not seen else f", {pace * (total - done):.0f} s left"
        self._print(f"{printable(what)}: {done} of {total}{left}")

    def close(self) -> None:
        """Nothing is held."""

    def _print(self, line: str) -> None:
        print(f"  {line}", file=self._stream or sys.stderr, flush=True)


class TerminalBar:
    """A line a step, and a bar for the loop that is going on, drawn in place below them.

    Args:
        console: A terminal; default: standard error.
        clock: Seconds that only grow.
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        from rich.console import Console

        self._console = console or Console(stderr=True)
        self._clock = clock
        self._bar: Bar | None = None
        self._what = ""
        self._shown = -math.inf
        self._done = 0

    def step(self, message: str) -> None:
        """Print it, above the bar if there is one."""
        from rich.text import Text

        self._console.print(Text(f"  {printable(message)}"), soft_wrap=True)

    def count(self, what: str, done: int, total: int) -> None:
        """Draw the bar, if it is time to; one that is full stays as it is."""
        if self._bar is None or what != self._what or done <= self._done:
            self.close()
            self._bar = self._begin(what, done, total)
            self._what, self._shown = what, -math.inf
        self._done = done
        (task,) = self._bar.task_ids
        self._bar.update(task, completed=done, total=total)
        now = self._clock()
        if done >= total:
            self.close()
        elif now - self._shown >= BAR_SECONDS:
            self._shown = now
            self._bar.refresh()

    def close(self) -> None:
        """Leave the bar where it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()  # draws once more
            self._bar = None

    def _begin(self, what: str, done: int, total: int) -> Bar:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed} of {task.total}", markup=False),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,  # results go where the user sends them
            get_time=self._clock,
        )
        bar.add_task(printable(what), total=total, completed=done)
        bar.start()
        return bar


def progress_on_stderr(quiet: bool) -> Silent | PlainLines | TerminalBar:
    """The way to show progress on standard error, to be closed in the end.

    Args:
        quiet: Whether to show nothing.
    """
    if quiet:
        return SILENT
    terminal = sys.stderr.isatty() and os.environ.get("TERM", "") not in _PLAIN_TERMINALS
    return TerminalBar() if terminal else PlainLines()
