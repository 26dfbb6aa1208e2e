"""Latency: targets measured in turn within one run, so that ratios hold on a noisy machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hat_export.report import Report, Table
from hat_export.self_test import noise_captions, noise_pixels
from hat_export.session import Session

#: Pause before a call that follows another target's: thread pools go on spinning for some
#: milliseconds after their work, and would take the cores from the next.
SETTLE_SECONDS = 0.01


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        target: Whose: name of a session.
        component: ``images``, ``texts`` or ``scores``.
        batch: Images, captions, or images x captions, as text.
        threads: Threads of the session.
        items: How many items a call handles, for the throughput.
        run: The call.
    """

    target: str
    component: str
    batch: str
    threads: int
    items: int
    run: Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Durations of one case.

    Attributes:
        case: What was timed.
        seconds: Every counted call, in order.
    """

    case: Case
    seconds: tuple[float, ...]

    def quantile(self, share: float) -> float:
        """Duration in milliseconds below which a share of the calls stayed."""
        return 1e3 * float(np.quantile(self.seconds, share))

    def to_json(self) -> dict[str, Any]:
        """Statistics in milliseconds, and items per second at the median."""
        return {
            "target": self.case.target,
            "component": self.case.component,
            "batch": self.case.batch,
            "threads": self.case.threads,
            "calls": len(self.seconds),
            "min_ms": self.quantile(0),
            "mean_ms": 1e3 * float(np.mean(self.seconds)),
            "p50_ms": self.quantile(0.5),
            "p90_ms": self.quantile(0.9),
            "p99_ms": self.quantile(0.99),
            "max_ms": self.quantile(1),
            "items_per_second": self.case.items / float(np.median(self.seconds)),
        }


def cases_of(
    name: str,
    session: Session,
    image_batches: Sequence[int],
    text_batches: Sequence[int],
    words: int,
    score_sizes: Sequence[tuple[int, int]],
) -> list[Case]:
    """The three verbs of a session at some sizes.

    Args:
        name: What to call the target.
        session: Any backend.
        image_batches: Images per call.
        text_batches: Captions per call.
        words: Width of the captions in word pieces.
        score_sizes: Images and captions per call of the score.
    """
    spec = session.spec
    cases = []
    for batch in image_batches:
        pixels = noise_pixels(spec, batch, seed=batch)
        cases.append(
            Case(
                name,
                "images",
                str(batch),
                session.threads,
                batch,
                partial(session.encode_images, pixels),
            )
        )
    for batch in text_batches:
        ids, _ = noise_captions(spec, batch, words, seed=batch)
        mask = np.ones_like(ids)
        cases.append(
            Case(
                name,
                "texts",
                f"{batch} x {words}",
                session.threads,
                batch,
                partial(session.encode_texts, ids, mask),
            )
        )
    for images, captions in score_sizes:
        regions = session.encode_images(noise_pixels(spec, images, seed=7))
        ids, _ = noise_captions(spec, captions, words, seed=8)
        texts = session.encode_texts(ids, np.ones_like(ids))
        cases.append(
            Case(
                name,
                "scores",
                f"{images} x {captions}",
                session.threads,
                images * captions,
                partial(session.score, regions, texts),
            )
        )
    return cases


def measure(
    groups: Sequence[Sequence[Case]],
    seconds: float,
    calls: int,
    progress: Callable[[str, int, int], None],
) -> list[Timing]:
    """Time groups of comparable cases, the cases of a group in turn (A B A B ...).

    Args:
        groups: Each holds one component at one size, on every target.
        seconds: Time to spend on each case after the warm-up.
        calls: Fewest counted calls, however long they take.
        progress: Called after each group.

    Returns:
        One timing a case, in the order of the groups.
    """
    timings = []
    for number, group in enumerate(groups, start=1):
        samples: list[list[float]] = [[] for _ in group]
        for case in group:
            for _ in range(3):  # first calls allocate, plan and fault pages in
                case.run()
        spent = 0.0
        while spent < seconds * len(group) or len(samples[0]) < calls:
            for case, sample in zip(group, samples, strict=True):
                if len(group) > 1:
                    time.sleep(SETTLE_SECONDS)
                started = time.perf_counter()
                case.run()
                sample.append(time.perf_counter() - started)
                spent += sample[-1]
        timings += [
            Timing(case, tuple(sample)) for case, sample in zip(group, samples, strict=True)
        ]
        progress("cases timed", number, len(groups))
    return timings


def latency_report(timings: Sequence[Timing], words: int, environment: Mapping[str, Any]) -> Report:
    """The report of a run; ratios are against the first target of each group."""
    first: dict[tuple[str, str, int], float] = {}
    rows = []
    for timing in timings:
        case = timing.case
        p50 = timing.quantile(0.5)
        base = first.setdefault((case.component, case.batch, case.threads), p50)
        rows.append(
            (
                f"{case.component} {case.batch}",
                case.target,
                str(case.threads),
                *(f"{timing.quantile(share):.2f}" for share in (0.5, 0.9, 0.99)),
                f"{case.items / p50 * 1e3:,.0f}",
                f"{base / p50:.2f}x",
                str(len(timing.seconds)),
            )
        )
    columns = ("", "target", "threads", "p50 ms", "p90 ms", "p99 ms", "items/s", "speed", "calls")
    note = (
        "Targets are called in turn within one run, after a pause in which the other's threads "
        "stop spinning. Included: the whole call on arrays in memory; "
        f"not included: decoding, preprocessing and tokenization. Captions are {words} word pieces "
        "long. Speed is against the first target of the same row group. Scores: images x captions."
    )
    table = Table("Latency", columns, tuple(rows), note)
    facts = Table(
        "Machine",
        ("what", "value"),
        tuple((key, str(value)) for key, value in _flat(environment)),
    )
    targets = list(dict.fromkeys(timing.case.target for timing in timings))
    data = {
        "timings": [timing.to_json() for timing in timings],
        "caption_words": words,
        "environment": dict(environment),
    }
    title = f"Latency: {', '.join(targets)}"
    return Report("latency", title, None, _summary(timings), (table, facts), data)


def _summary(timings: Sequence[Timing]) -> tuple[str, ...]:
    """Per target after the first: how much faster or slower it is, component by component."""
    targets = list(dict.fromkeys(timing.case.target for timing in timings))
    medians = {
        (t.case.target, t.case.component, t.case.batch, t.case.threads): t.quantile(0.5)
        for t in timings
    }
    lines = []
    for target in targets[1:]:
        parts = []
        for component in ("images", "texts", "scores"):
            ratios = [
                medians[(targets[0], *key[1:])] / value
                for key, value in medians.items()
                if key[0] == target and key[1] == component and (targets[0], *key[1:]) in medians
            ]
            if ratios:
                parts.append(f"{component} {min(ratios):.2f} to {max(ratios):.2f} times")
        lines.append(f"Speed of {target} against {targets[0]}: {', '.join(parts)}.")
    return tuple(lines) or (f"{len(timings)} cases of {targets[0]}.",)


def _flat(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in environment.items():
        rows += list(value.items()) if isinstance(value, Mapping) else [(key, value)]
    return rows
