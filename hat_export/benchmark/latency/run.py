"""A run: targets opened once a pass, every component timed in turn, at each number of threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest

from hat_export.base.atomic import scratch_folder
from hat_export.base.progress import Progress
from hat_export.benchmark.latency.cases import CAPTION, Case, Sizes, cases_of, write_pictures
from hat_export.benchmark.latency.measure import Pass, Timing, measure_pass
from hat_export.runtime.session import Session
from hat_export.spec import ModelSpec


@dataclass(frozen=True)
class Opener:
    """A target that can be opened as often as wanted.

    Attributes:
        name: What to call it.
        open: A new session with so many threads.
    """

    name: str
    open: Callable[[int], Session]


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        passes: How often every target is opened anew.
        seconds: Time per case over all passes, after the warm-up.
        calls: Fewest counted calls per case over all passes.
    """

    passes: int
    seconds: float
    calls: int


@dataclass(frozen=True)
class Opened:
    """What a session told while it was open.

    Attributes:
        spec: The architecture.
        backend: What ran it.
        caption_words: Word pieces of the caption that is searched for end to end.
    """

    spec: ModelSpec
    backend: str
    caption_words: int


def measure_targets(
    openers: Sequence[Opener],
    sizes: Sizes,
    threads: int,
    effort: Effort,
    progress: Progress,
) -> tuple[list[Timing], dict[str, Opened]]:
    """Time every component of some targets at one number of threads.

    Args:
        openers: The targets, the baseline first.
        sizes: At which sizes.
        threads: Threads of every session.
        effort: How much is measured.
        progress: Told what begins, and after each group of cases.

    Returns:
        One timing a case, cases of one group together; and what each target told, by name.
    """
    passes: dict[int, list[Pass]] = {}
    cases: list[Case] = []
    told: dict[str, Opened] = {}
    with scratch_folder() as folder:
        pictures = write_pictures(folder, max(sizes.images, default=0))
        for number in range(1, effort.passes + 1):
            with ExitStack() as stack:
                columns = []
                for opener in openers:
                    progress.step(f"pass {number} of {effort.passes}: opening {opener.name}")
                    session = stack.enter_context(opener.open(threads))
                    ids, _ = session.tokenizer.encode([CAPTION])
                    told[opener.name] = Opened(session.spec, session.backend, ids.shape[1])
                    columns.append(cases_of(opener.name, session, sizes, pictures))
                groups = [
                    [case for case in group if case is not None] for group in zip_longest(*columns)
                ]
                cases = [case for group in groups for case in group]
                rounds = max(2, -(-effort.calls // effort.passes))
                seconds = effort.seconds / effort.passes
                for place, found in enumerate(measure_pass(groups, seconds, rounds, progress)):
                    passes.setdefault(place, []).append(found)
    return [Timing(case, tuple(passes[place])) for place, case in enumerate(cases)], told
