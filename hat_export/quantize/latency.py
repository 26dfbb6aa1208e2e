"""Latency of the plans of a search, comparable although they are measured minutes apart."""

from __future__ import annotations

import statistics

import numpy as np

from hat_export.base.timer import Timer, own_median
from hat_export.quantize.preflight import WORDS
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.session import Session

#: Calls per encoder and plan that latency is the median of, and those before, which allocate and
#: plan.
CALLS, WARM_UP = 15, 3
#: Calls of the reference workload before each encoder is timed, and after the last.
REFERENCE_CALLS = 5


class PlanTimer:
    """Times plans, all at the speed that the machine had when the first was timed.

    Args:
        timer: What times the calls.
        first_reference: Seconds of the reference workload beside the first plan, where an earlier
            run of the search timed it.

    Attributes:
        first_reference: The same of this search; None before its first plan.
    """

    def __init__(self, timer: Timer, first_reference: float | None = None) -> None:
        self._timer = timer
        self.first_reference = first_reference

    def seconds(self, session: Session) -> float:
        """Seconds of one image plus one caption of :data:`WORDS` words, without waits for a core.

        Args:
            session: On the bundle of a plan.
        """
        spec = session.spec
        pixels = noise_pixels(spec, 1, seed=3)
        ids, _ = noise_captions(spec, 1, min(WORDS, spec.max_words), seed=4)
        mask = np.ones_like(ids)
        total, reference = 0.0, []
        for run in (
            lambda: session.encode_images(pixels),
            lambda: session.encode_texts(ids, mask),
        ):
            reference += [self._timer.reference() for _ in range(REFERENCE_CALLS)]
            total += own_median(self._timer.repeat(run, CALLS, warm_up=WARM_UP))
        reference += [self._timer.reference() for _ in range(REFERENCE_CALLS)]
        now = statistics.median(reference)
        if self.first_reference is None:
            self.first_reference = now
        return total * self.first_reference / now
