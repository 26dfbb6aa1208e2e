"""Targets timed in turn within one run, so that ratios hold on a noisy machine.

A *round* gives the reference workload and every target one *turn*. A turn lasts about 20 ms or one
call, whichever is longer, so that short calls are timed with warm caches and long ones often
enough.
Rounds are counted once the times have become stable. A *pass* opens every target anew: how its
memory happens to lie is part of the noise that two runs differ by, and only passes show it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hat_export.base.progress import Progress
from hat_export.base.timer import Call, Timer, own_median
from hat_export.benchmark.latency.cases import Case

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
        anchor: Per round, the seconds of the reference workload, without such waits.
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
class _Turn:
    """The calls of a turn, and of each the seconds of its parts."""

    calls: list[Call]
    parts: list[Mapping[str, float]]


class _Turns:
    """One target's turns in a pass."""

    def __init__(self, case: Case, timer: Timer) -> None:
        self._run, self._parts, self._timer = case.run, case.parts, timer
        # The first call allocates, plans, faults pages in: it only sets the first turn's length.
        with timer.calls() as timed:
            self._last = timed(self._run).seconds
        self.warm_up: list[float] = []
        self.rounds: list[_Turn] = []

    def turn(self) -> _Turn:
        """The calls of a turn."""
        self._timer.settle()
        calls = min(CALLS_PER_TURN, max(1, int(TURN_SECONDS / self._last)))
        if calls > 1:
            self._run()  # wakes the thread pool and refills the caches after the other's turn
        turn = _Turn([], [])
        with self._timer.calls() as timed:
            for _ in range(calls):
                turn.calls.append(timed(self._run))
                turn.parts.append(self._parts())
        self._last = own_median(turn.calls)
        return turn

    def warm(self) -> None:
        """A turn that only tells whether the times are stable."""
        self.warm_up.append(own_median(self.turn().calls))

    @property
    def change(self) -> float:
        """Relative change between the last two windows; 1 while there aren't two."""
        recent = self.warm_up[-2 * WINDOW_TURNS :]
        if len(recent) < 2 * WINDOW_TURNS:
            return 1.0
        before = statistics.median(recent[:WINDOW_TURNS])
        return abs(statistics.median(recent[WINDOW_TURNS:]) / before - 1)


def measure_pass(
    groups: Sequence[Sequence[Case]],
    seconds: float,
    rounds: int,
    progress: Progress,
    timer: Timer | None = None,
) -> list[Pass]:
    """Time groups of comparable cases, the cases of a group in turn (A B A B ...).

    Args:
        groups: Each holds one component at one size, on every target.
        seconds: Time to spend on each case after the warm-up.
        rounds: Fewest rounds, however long they take.
        progress: Told after each group.
        timer: What times the calls.

    Returns:
        One result a case, in the order of the groups.
    """
    timer = timer or Timer()
    found = []
    for number, group in enumerate(groups, start=1):
        found += _measure_group(group, timer, seconds, rounds)
        progress.count("cases timed", number, len(groups))
    return found


def _measure_group(group: Sequence[Case], timer: Timer, budget: float, rounds: int) -> list[Pass]:
    turns = [_Turns(case, timer) for case in group]
    started = timer.clock()
    warmed = 0
    while warmed < WARM_UP_TURNS:
        for target in turns:
            target.warm()
        warmed += 1
        if all(target.change < STABLE_WITHIN for target in turns):
            break
        long_enough = timer.clock() - started > budget * len(group)
        if long_enough and warmed >= 2 * WINDOW_TURNS:
            break
    reference: list[float] = []
    spent = 0.0
    while spent < budget * len(group) or len(reference) < rounds:
        reference.append(timer.reference())
        for target in turns:
            turn = target.turn()
            target.rounds.append(turn)
            spent += sum(call.seconds for call in turn.calls)
    return [
        Pass(
            tuple(tuple(call.seconds for call in turn.calls) for turn in target.rounds),
            tuple(tuple(call.waited for call in turn.calls) for turn in target.rounds),
            tuple(reference),
            warmed,
            target.change < STABLE_WITHIN,
            target.change,
            {
                part: tuple(tuple(parts[part] for parts in turn.parts) for turn in target.rounds)
                for part in target.rounds[0].parts[0]
            },
        )
        for target in turns
    ]
