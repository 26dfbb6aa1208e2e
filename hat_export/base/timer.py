"""The one way to time calls on a machine that does other things besides.

- What is compared is called in turn (A B A B ...), so that whatever else the machine does falls on
  all alike. Before each turn there is a pause: thread pools go on spinning for some milliseconds
  after their work and would take the cores from the next.
- Time in which a thread of the process was ready to run and got no core is told apart from the
  rest (:class:`RunQueueWait`): that time is the machine's, not the call's.
- Beside the calls a fixed piece of work is timed (:class:`ReferenceWorkload`): the run's own
  measure of the machine, by which figures of different moments, runs or machines can be compared.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hat_export.base.closing import Closing

#: Pause before a turn.
SETTLE_SECONDS = 0.01

#: Side of a product of the reference workload. OpenBLAS computes up to 64 x 64 x 64 on the calling
#: thread.
SIDE = 64
#: Different products; with their results 1 MB, which a second-level cache holds.
PRODUCTS = 20
#: How often each is computed in a call, which then takes some milliseconds.
REPEATS = 30

REFERENCE_DESCRIPTION = (
    f"{PRODUCTS * REPEATS} products of {SIDE} x {SIDE} x {SIDE} in float32 on one thread"
)

_TASKS = Path("/proc/self/task")

Run = Callable[[], object]


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        seconds: From its beginning to its end.
        waited: Seconds of it in which a thread got no core; below ``seconds``.
    """

    seconds: float
    waited: float

    @property
    def own(self) -> float:
        """Seconds without waits for a core."""
        return self.seconds - self.waited


def own_median(calls: Sequence[Call]) -> float:
    """Median of the calls' seconds without waits for a core."""
    return statistics.median(call.own for call in calls)


class RunQueueWait(Closing):
    """Time that threads were ready to run and got no core, as Linux counts it for each of them.

    On a busy machine a call takes longer because others use its cores. That time is not the call's.
    Beside two busy processes on two cores, medians of the demo model on one thread were up to 1.5
    times those of the quiet machine; without waits they came within 10 % of them, and over the time
    of the reference workload eight runs scattered by 1.4 to 1.8 %. On two threads they still
    scattered by 10 %: a busy machine is no place to compare targets that want all of it. Of the
    threads of a process, the one that waited longest is taken: parallel work goes on when its last
    thread has done its part.

    What it doesn't see: waiting for memory or a shared cache, a slower clock, time that a
    hypervisor gave to another guest, and threads that a call starts itself. A target that starts
    more threads than there are cores waits for itself, which is taken out, too.

    It counts the threads that the process has when it is made; without Linux's counters, none.
    """

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


class ReferenceWorkload:
    """A fixed piece of work that is timed beside the calls, ready to be run.

    A shared machine is faster at one time than at another, and the next one is another machine. A
    target's time over that of this workload, taken in the same rounds, tells how much of a change
    is the target's. It is a stack of float32 products that fit a core's cache, each too small for a
    BLAS to use more than the calling thread. One thread, whatever the targets use: what a second
    one takes hangs on the pools of other libraries that have not gone to sleep yet, and with two
    threads the workload itself varied more than what it was to correct (4 to 20 % against 2 to
    3 %).
    """

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._left, self._right = random.standard_normal((2, PRODUCTS, SIDE, SIDE), np.float32)
        self._out = np.empty_like(self._left)

    def run(self) -> None:
        """Compute once."""
        for _ in range(REPEATS):
            np.matmul(self._left, self._right, out=self._out)


class Timer:
    """Times calls; one serves a whole run.

    Args:
        clock: Seconds that only grow.
        sleep: Pauses for some seconds.
        count_waits: Begins to count the waits of the process's threads.
        reference: Work to time beside the calls; by default a :class:`ReferenceWorkload`, made when
            it is first wanted.
        settle_seconds: Pause before a turn.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        count_waits: Callable[[], RunQueueWait] = RunQueueWait,
        reference: Run | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self.clock = clock
        self._sleep = sleep
        self._count_waits = count_waits
        self._reference = reference
        self._settle_seconds = settle_seconds

    def settle(self) -> None:
        """Pause before a turn."""
        self._sleep(self._settle_seconds)

    @contextmanager
    def calls(self) -> Iterator[Callable[[Run], Call]]:
        """What times a call of the threads that the process has now."""
        with self._count_waits() as waits:

            def timed(run: Run) -> Call:
                before = waits.read()
                started = self.clock()
                run()
                seconds = self.clock() - started
                return Call(seconds, min(waits.since(before), 0.99 * seconds))

            yield timed

    def reference(self) -> float:
        """Seconds of the reference workload, without waits, after a pause and a run to wake up."""
        if self._reference is None:
            self._reference = ReferenceWorkload().run
        self.settle()
        self._reference()
        with self.calls() as timed:
            return timed(self._reference).own

    def repeat(self, run: Run, calls: int, seconds: float = 0.0, warm_up: int = 1) -> list[Call]:
        """Time one thing by itself, call after call.

        Args:
            run: What to call.
            calls: Fewest calls.
            seconds: Go on for so long at least.
            warm_up: Calls before, which aren't counted.
        """
        self.settle()
        for _ in range(warm_up):
            run()
        found: list[Call] = []
        with self.calls() as timed:
            end = self.clock() + seconds
            while len(found) < calls or self.clock() < end:
                found.append(timed(run))
        return found

    def in_turn(
        self,
        runs: Mapping[str, Run],
        rounds: int,
        calls: int = 1,
        seconds: float = 0.0,
        warm_up: int = 1,
        wake: bool | None = None,
    ) -> dict[str, list[Call]]:
        """Time some things in turn.

        Args:
            runs: What to call, by name.
            rounds: Fewest turns of each.
            calls: Calls of a turn.
            seconds: Go on for so long at least.
            warm_up: Calls of each before the first round, which aren't counted.
            wake: Whether a turn begins with a call that isn't counted, which wakes the thread pool
                and refills the caches after another's turn; by default if it has several.

        Returns:
            Every counted call by name, round after round.
        """
        for run in runs.values():
            for _ in range(warm_up):
                run()
        found: dict[str, list[Call]] = {name: [] for name in runs}
        end, done = self.clock() + seconds, 0
        while done < rounds or self.clock() < end:
            for name, run in runs.items():
                self.settle()
                if calls > 1 if wake is None else wake:
                    run()
                with self.calls() as timed:
                    found[name] += [timed(run) for _ in range(calls)]
            done += 1
        return found
