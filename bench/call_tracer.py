"""Traces the calls that go from one room of the package to another, in all threads.

A function, generator, comprehension or lambda belongs to the room in whose source it stands,
whoever calls it or resumes it. Code of libraries belongs to the room that called the library, so
that a callback is called by the room that handed control to the library; a thread is called by the
room that started it. What runs when a module is imported is left out, and so are finalizers
(``__del__``), which run at any time.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType

#: The room for which whatever calls the command is taken.
NOBODY = "command line"


@dataclass
class Call:
    """A call from one room to another.

    Attributes:
        caller: Room that calls, or `NOBODY`.
        called: Room of the function.
        where: ``module:line`` of the call, and the function that it stands in.
        function: ``module:line`` of the function, and its qualified name.
    """

    caller: str
    called: str
    where: str
    function: str


@dataclass(frozen=True)
class _Place:
    """Where a thread is: the room, the innermost function in it, and whether it imports."""

    room: str
    code: CodeType | None = None
    importing: bool = False


@dataclass
class Tracer:
    """Collects the first call between any two functions in different rooms.

    Attributes:
        rooms: Source file -> (room, module).
        calls: What was called, in order.
    """

    rooms: dict[str, tuple[str, str]]
    calls: dict[tuple[CodeType | None, CodeType], Call] = field(default_factory=dict)
    _local: threading.local = field(default_factory=threading.local)

    def run(self, function: Callable[[], object]) -> None:
        """Call a function while everything is traced, its threads too."""
        start = threading.Thread.start

        def start_from_here(thread: threading.Thread) -> None:
            thread.started_from = self._stack()[-1]  # type: ignore[attr-defined]
            start(thread)

        threading.Thread.start = start_from_here  # type: ignore[method-assign]
        threading.setprofile(self._profile)
        sys.setprofile(self._profile)
        try:
            function()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)  # type: ignore[arg-type]
            threading.Thread.start = start  # type: ignore[method-assign]

    def _stack(self) -> list[_Place]:
        """A place for every frame of this thread; below them that from where it was started."""
        stack: list[_Place] | None = getattr(self._local, "stack", None)
        if stack is None:
            thread = threading.current_thread()
            stack = [getattr(thread, "started_from", _Place(NOBODY))]
            self._local.stack = stack
        return stack

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        # A generator is called when it is resumed, and returns when it yields.
        if event == "call":
            stack = self._stack()
            stack.append(self._enter(frame, stack[-1]))
        elif event == "return":
            stack = self._stack()
            if len(stack) > 1:  # else the frame was there before the tracing
                stack.pop()

    def _enter(self, frame: FrameType, caller: _Place) -> _Place:
        code = frame.f_code
        found = self.rooms.get(code.co_filename)
        is_function = code.co_flags & inspect.CO_OPTIMIZED  # not the body of a module or class
        if caller.importing or code.co_filename.startswith("<frozen importlib"):
            return _Place(caller.room, caller.code, importing=True)
        if found is None:
            return caller
        if not is_function or code.co_name == "__del__":
            return _Place(caller.room, caller.code, importing=True)
        room, module = found
        if room != caller.room and (caller.code, code) not in self.calls:
            function = f"{module}:{code.co_firstlineno} {code.co_qualname}"
            where = self._call_site(frame, caller.code)
            self.calls[caller.code, code] = Call(caller.room, room, where, function)
        return _Place(room, code)

    def _call_site(self, frame: FrameType, caller: CodeType | None) -> str:
        at = frame.f_back
        while at is not None and at.f_code is not caller:
            at = at.f_back
        if caller is None:
            return NOBODY
        # A thread's caller isn't on its stack.
        line = caller.co_firstlineno if at is None else at.f_lineno
        return f"{self.rooms[caller.co_filename][1]}:{line} {caller.co_qualname}"
