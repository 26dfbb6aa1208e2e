"""A fixed piece of work that is timed beside the targets: the run's own measure of the machine.

A shared machine is faster at one time than at another, and the next one is another machine. A
target's time over the anchor's, taken in the same rounds, tells how much of a change is the
target's. The anchor is a stack of float32 products that fit a core's cache, each too small for a
BLAS to use more than the calling thread. One thread, whatever the targets use: what a second one
takes hangs on the pools of other libraries that have not gone to sleep yet, and with two threads
the anchor itself varied more than what it was to correct (4 to 20 % against 2 to 3 %).
"""

from __future__ import annotations

import numpy as np

#: Side of a product. OpenBLAS computes up to 64 x 64 x 64 on the calling thread.
SIDE = 64
#: Different products; with their results 1 MB, which a second-level cache holds.
PRODUCTS = 20
#: How often each is computed in a call, which then takes some milliseconds.
REPEATS = 30

DESCRIPTION = f"{PRODUCTS * REPEATS} products of {SIDE} x {SIDE} x {SIDE} in float32 on one thread"


class Anchor:
    """The work, ready to be called."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        self._left, self._right = random.standard_normal((2, PRODUCTS, SIDE, SIDE), np.float32)
        self._out = np.empty_like(self._left)

    def run(self) -> None:
        """Compute once."""
        for _ in range(REPEATS):
            np.matmul(self._left, self._right, out=self._out)
