"""Time for tests of what measures time."""

from hat_export.base.timer import RunQueueWait, Timer

#: What the reference workload takes on :class:`FakeClock`.
REFERENCE_SECONDS = 0.002


class FakeClock:
    """Time that only passes when a call or a pause says so, in which threads wait as told.

    Attributes:
        now: Seconds.
        waited: Seconds that the longest waiting thread has waited so far.
        slowness: By how much work takes longer.
        pauses: Every pause of the timer.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.waited = 0.0
        self.slowness = 1.0
        self.pauses: list[float] = []

    def work(self, seconds: float, waited: float = 0.0) -> None:
        """Let time pass, in some of which a thread gets no core."""
        self.now += self.slowness * seconds
        self.waited += self.slowness * waited

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def timer(self, settle_seconds: float = 0.01) -> Timer:
        """A timer on this clock."""
        return Timer(
            lambda: self.now,
            self.sleep,
            lambda: _Waits(self),
            lambda: self.work(REFERENCE_SECONDS),
            settle_seconds,
        )


def no_waits() -> RunQueueWait:
    """Counts nothing, for a timer on another clock."""
    return _Waits(FakeClock())


class _Waits(RunQueueWait):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.close()
        self._clock = clock

    def read(self) -> list[int]:
        return [round(1e9 * self._clock.waited)]
