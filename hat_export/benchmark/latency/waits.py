"""Time that threads were ready to run and got no core, as Linux counts it for each of them.

On a busy machine a call takes longer because others use its cores. That time is not the target's.
Beside two busy processes on two cores, medians of the demo model on one thread were up to 1.5 times
those of the quiet machine; without waits they came within 10 % of them, and over the anchor's time
eight runs scattered by 1.4 to 1.8 %. On two threads they still scattered by 10 %: a busy machine is
no place to compare targets that want all of it. Of the threads of a process, the one that waited
longest is taken: parallel work goes on when its last thread has done its part.

What it doesn't see: waiting for memory or a shared cache, a slower clock, time that a hypervisor
gave to another guest, and threads that a call starts itself. A target that starts more threads than
there are cores waits for itself, which is taken out, too.
"""

from __future__ import annotations

import os
from pathlib import Path

from hat_export.base.closing import Closing

_TASKS = Path("/proc/self/task")


class Waits(Closing):
    """The threads that the process has now; without Linux's counters, none."""

    def __init__(self) -> None:
        self._files: list[int] = []
        try:
            for task in _TASKS.iterdir():
                self._files.append(os.open(task / "schedstat", os.O_RDONLY))
        except OSError:  # no such counters, or a thread that ended meanwhile
            pass

    def read(self) -> list[int]:
        """Nanoseconds that each thread has waited so far."""
        found = []
        for file in self._files:
            try:
                found.append(int(os.pread(file, 80, 0).split()[1]))
            except (OSError, IndexError, ValueError):
                found.append(0)  # it ended
        return found

    def since(self, before: list[int]) -> float:
        """Seconds that the longest waiting thread has waited since an earlier reading."""
        now = self.read()
        return 1e-9 * max((b - a for a, b in zip(before, now, strict=True)), default=0)

    def close(self) -> None:
        """Close the counters."""
        for file in self._files:
            os.close(file)
        self._files.clear()
