"""Dynamic batching: requests that wait while the model is busy are answered together.

A worker takes everything that waits, up to the largest batch, as soon as it is free. A lone request
is never held back unless a delay is asked for: then the worker waits so long for a batch to fill,
counted from the arrival of its first request.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hat_export.base.closing import Closing


@dataclass(frozen=True)
class Request:
    """One waiting request.

    Attributes:
        identity: What the answer is reported under.
        sample: Number of its input.
    """

    identity: int
    sample: int


class Batcher(Closing):
    """A queue and the thread that empties it.

    Args:
        answer: Computes a batch of samples.
        done: Told which requests are answered.
        largest: Most requests of a batch.
        delay: Seconds that an incomplete batch waits for more.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[int]], object],
        done: Callable[[Sequence[Request]], None],
        largest: int,
        delay: float = 0.0,
    ) -> None:
        self._answer, self._done = answer, done
        self._largest, self._delay = largest, delay
        self._waiting: deque[tuple[float, Request]] = deque()
        self._changed = threading.Condition()
        self._open = True
        #: How many batches of each size were answered.
        self.sizes: Counter[int] = Counter()
        #: What went wrong, if something did: later requests are reported as done unanswered, so
        #: that the sender comes to an end and the owner can raise it.
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    def put(self, requests: Sequence[Request]) -> None:
        """Let requests wait for their answer."""
        now = time.perf_counter()
        with self._changed:
            self._waiting.extend((now, request) for request in requests)
            self._changed.notify()

    def close(self) -> None:
        """Answer what waits and end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _take(self) -> list[Request]:
        """The next batch; empty when closed and nothing waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            if not self._waiting:
                return []
            until = self._waiting[0][0] + self._delay
            while self._open and len(self._waiting) < self._largest:
                left = until - time.perf_counter()
                if left <= 0 or not self._changed.wait(left):
                    break
            count = min(self._largest, len(self._waiting))
            return [self._waiting.popleft()[1] for _ in range(count)]

    def _work(self) -> None:
        while batch := self._take():
            if self.error is None:
                try:
                    self._answer([request.sample for request in batch])
                    self.sizes[len(batch)] += 1
                except Exception as error:  # raised again by the owner, in its own thread
                    self.error = error
            self._done(batch)
