"""Plans are timed at one speed of the machine, whatever it does meanwhile."""

from __future__ import annotations

from typing import Any, cast

import pytest

from fake_clock import FakeClock
from hat_export.quantize.latency import PlanTimer
from hat_export.runtime.session import Session
from hat_export.spec import OFFICIAL, ModelSpec


class StubSession:
    """Takes a second for an image and half of one for a caption, and waits as long again."""

    def __init__(self, spec: ModelSpec, clock: FakeClock) -> None:
        self.spec, self._clock = spec, clock

    def encode_images(self, pixels: Any) -> None:
        self._clock.work(2.0, waited=1.0)

    def encode_texts(self, ids: Any, mask: Any) -> None:
        self._clock.work(1.0, waited=0.5)


def test_a_slower_machine_makes_no_plan_slower() -> None:
    clock = FakeClock()
    session = cast("Session", StubSession(OFFICIAL, clock))
    plans = PlanTimer(clock.timer())
    assert plans.seconds(session) == pytest.approx(1.5)
    clock.slowness = 3.0
    assert plans.seconds(session) == pytest.approx(1.5)
    # The same search, gone on with on the slower machine.
    resumed = PlanTimer(clock.timer(), plans.first_reference)
    assert resumed.seconds(session) == pytest.approx(1.5)
    # Another search has its own first plan.
    assert PlanTimer(clock.timer()).seconds(session) == pytest.approx(4.5)
