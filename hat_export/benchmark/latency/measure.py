"""Targets timed in turn within one run, so that ratios hold on a noisy machine.

A *round* gives the anchor and every target one *turn*. A turn lasts about 20 ms or one call,
whichever is longer, so that short calls are timed with warm caches and long ones often enough.
Rounds are counted once the times have become stable. A *pass* opens every target anew: how its
memory happens to lie is part of the noise that two runs differ by, and only passes show it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hat_export.base.progress import Progress
from hat_export.benchmark.latency.anchor import Anchor
from hat_export.benchmark.latency.cases import Case
from hat_export.benchmark.latency.waits import Waits

#: Pause before another's turn: thread pools go on spinning for some milliseconds after their work,
#: and would take the cores from the next.
SETTLE_SECONDS = 0.01
#: Calls of one turn take about so long together.
TURN_SECONDS = 0.02
CALLS_PER_TURN = 30

#: Warm-up ends when the medians of the last two windows of so many turns differ by less than this.
WINDOW_TURNS = 3
STABLE_WITHIN = 0.05
#: Most turns of the warm-up; fewer if they take longer than the counted ones will.
WARM_UP_TURNS = 30

STABILITY = (
    f"warm-up ends when the medians of two successive windows of {WINDOW_TURNS} turns differ by "
    f"less than {STABLE_WITHIN:.0%}, and after {WARM_UP_TURNS} turns, or the time of the counted "
    "ones, at the latest"
)


@dataclass(frozen=True)
class Pass:
    """What one opening of a target gave.

    Attributes:
        rounds: Per round, the seconds of each counted call.
        waits: Per round and call, the seconds of it in which a thread got no core.
        anchor: Per round, the seconds of the anchor, without such waits.
        warm_up_turns: Turns before the first round.
        stable: Whether the times had become stable by then.
        change: Relative change between the last two windows of the warm-up.
        parts: By name of a part, per round and call, its seconds; empty where a target doesn't
            tell.
    """

    rounds: tuple[tuple[float, ...], ...]
    waits: tuple[tuple[float, ...], ...]
    anchor: tuple[float, ...]
    warm_up_turns: int
    stable: bool
    change: float
    parts: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)

    @property
    def medians(self) -> list[float]:
        """Median of each round, in seconds."""
        return [statistics.median(calls) for calls in self.rounds]

    @property
    def own_medians(self) -> list[float]:
        """Median of each round without waits for a core, in seconds."""
        return [
            statistics.median(map(float.__sub__, calls, waits))
            for calls, waits in zip(self.rounds, self.waits, strict=True)
        ]


@dataclass(frozen=True)
class Timing:
    """All that was measured of one case.

    Attributes:
        case: What was timed.
        passes: At least one.
    """

    case: Case
    passes: tuple[Pass, ...]


@dataclass(frozen=True)
class _Call:
    """Seconds of a call, of the waits in it, and of its parts."""

    seconds: float
    waited: float
    parts: Mapping[str, float]


def _own_median(calls: Sequence[_Call]) -> float:
    return statistics.median(call.seconds - call.waited for call in calls)


def _timed(run: Callable[[], object], waits: Waits) -> tuple[float, float]:
    """Seconds of a call, and of the waits in it, which stay below it."""
    before = waits.read()
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    return seconds, min(waits.since(before), 0.99 * seconds)


class _Turns:
    """One target's turns in a pass."""

    def __init__(self, case: Case) -> None:
        self._run, self._parts = case.run, case.parts
        # The first call allocates, plans, faults pages in: it only sets the first turn's length.
        with Waits() as waits:
            self._last, _ = _timed(self._run, waits)
        self.warm_up: list[float] = []
        self.rounds: list[list[_Call]] = []

    def turn(self) -> list[_Call]:
        """The calls of a turn."""
        calls = min(CALLS_PER_TURN, max(1, int(TURN_SECONDS / self._last)))
        if calls > 1:
            self._run()  # wakes the thread pool and refills the caches after the other's turn
        with Waits() as waits:
            found = [_Call(*_timed(self._run, waits), self._parts()) for _ in range(calls)]
        self._last = _own_median(found)
        return found

    def warm(self) -> None:
        """A turn that only tells whether the times are stable."""
        self.warm_up.append(_own_median(self.turn()))

    @property
    def change(self) -> float:
        """Relative change between the last two windows; 1 while there aren't two."""
        recent = self.warm_up[-2 * WINDOW_TURNS :]
        if len(recent) < 2 * WINDOW_TURNS:
            return 1.0
        before = statistics.median(recent[:WINDOW_TURNS])
        return abs(statistics.median(recent[WINDOW_TURNS:]) / before - 1)


def measure_pass(
    groups: Sequence[Sequence[Case]], seconds: float, rounds: int, progress: Progress
) -> list[Pass]:
    """Time groups of comparable cases, the cases of a group in turn (A B A B ...).

    Args:
        groups: Each holds one component at one size, on every target.
        seconds: Time to spend on each case after the warm-up.
        rounds: Fewest rounds, however long they take.
        progress: Told after each group.

    Returns:
        One result a case, in the order of the groups.
    """
    anchor = Anchor()
    found = []
    for number, group in enumerate(groups, start=1):
        found += _measure_group(group, anchor, seconds, rounds)
        progress.count("cases timed", number, len(groups))
    return found


def _measure_group(group: Sequence[Case], anchor: Anchor, budget: float, rounds: int) -> list[Pass]:
    turns = [_Turns(case) for case in group]
    started = time.perf_counter()
    warmed = 0
    while warmed < WARM_UP_TURNS:
        for target in turns:
            time.sleep(SETTLE_SECONDS)
            target.warm()
        warmed += 1
        if all(target.change < STABLE_WITHIN for target in turns):
            break
        long_enough = time.perf_counter() - started > budget * len(group)
        if long_enough and warmed >= 2 * WINDOW_TURNS:
            break
    anchors: list[float] = []
    spent = 0.0
    while spent < budget * len(group) or len(anchors) < rounds:
        time.sleep(SETTLE_SECONDS)
        anchor.run()
        with Waits() as waits:
            seconds, waited = _timed(anchor.run, waits)
        anchors.append(seconds - waited)
        for target in turns:
            time.sleep(SETTLE_SECONDS)
            calls = target.turn()
            target.rounds.append(calls)
            spent += sum(call.seconds for call in calls)
    return [
        Pass(
            tuple(tuple(call.seconds for call in calls) for calls in target.rounds),
            tuple(tuple(call.waited for call in calls) for calls in target.rounds),
            tuple(anchors),
            warmed,
            target.change < STABLE_WITHIN,
            target.change,
            {
                part: tuple(tuple(call.parts[part] for call in calls) for calls in target.rounds)
                for part in target.rounds[0][0].parts
            },
        )
        for target in turns
    ]
