"""Progress that goes to a function of the test."""

from collections.abc import Callable

from hat_export.base.progress import Silent


class CountCalls(Silent):
    """Calls a function with what every count tells."""

    def __init__(self, called: Callable[[str, int, int], object]) -> None:
        self._called = called

    def count(self, what: str, done: int, total: int) -> None:
        self._called(what, done, total)
