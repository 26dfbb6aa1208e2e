"""Leaks and differences under load: shared sessions, thousands of calls, 200 sessions."""

from __future__ import annotations

import argparse
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from commands import Place

import hat_export
from hat_export.runtime.self_test import noise_pixels
from hat_export.runtime.session import Session

CAPTIONS = ["a red heart", "two dogs run on a beach in the rain", "x", "an old steam train"]
#: Calls before memory is looked at: pools and arenas have grown to their size by then.
WARM_UP = 2000
SESSIONS = 200


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per kind of load."""
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        bundle = Place(Path(folder)).bundle()
        rows = [many_calls(bundle, options.calls), shared(bundle, options.calls // 5)]
        rows.append(many_sessions(bundle))
    for row in rows:
        print(f"  {row}", flush=True)
    return rows


def work(session: Session, seed: int) -> np.ndarray:
    """Each verb once."""
    images = session.encode_images(noise_pixels(session.spec, 1, seed))
    return session.score(images, session.encode_texts(CAPTIONS))


def resident() -> int:
    """Memory that this process holds, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def many_calls(bundle: Path, calls: int) -> dict[str, Any]:
    """So many calls of every verb: the slope of resident memory over them."""
    with hat_export.open_bundle(bundle, threads=2) as session:
        for number in range(WARM_UP):
            work(session, number % 8)
        counts, sizes = [], []
        for number in range(calls):
            if number % 100 == 0:
                counts.append(number)
                sizes.append(resident())
            work(session, number % 8)
    slope = float(np.polyfit(counts, sizes, 1)[0])
    return {
        "load": f"{calls:,} calls of every verb",
        "growth_bytes": sizes[-1] - sizes[0],
        "slope_bytes_per_call": slope,
        "different": 0,
    }


def shared(bundle: Path, calls: int) -> dict[str, Any]:
    """Eight threads on one session: bits as in one thread."""
    with hat_export.open_bundle(bundle, threads=2) as session:
        expected = [work(session, seed) for seed in range(8)]
        with ThreadPoolExecutor(8) as pool:
            # Eight threads' arenas take longer to grow to their size than one thread's.
            list(pool.map(lambda n: work(session, n % 8), range(2 * WARM_UP)))
            before = resident()
            found = pool.map(lambda n: (n, work(session, n % 8)), range(calls))
            different = sum(not np.array_equal(scores, expected[n % 8]) for n, scores in found)
        growth = resident() - before
    return {
        "load": f"{calls:,} rounds on 8 threads that share a session",
        "growth_bytes": growth,
        "slope_bytes_per_call": growth / calls,
        "different": different,
    }


def many_sessions(bundle: Path) -> dict[str, Any]:
    """Open, use and close: memory, descriptors and threads afterwards."""

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), len(
            list(Path("/proc/self/task").iterdir())
        )

    def once() -> None:
        with hat_export.open_bundle(bundle, threads=2, verify=False) as session:
            work(session, 1)

    for _ in range(20):
        once()
    before, size = held(), resident()
    for _ in range(SESSIONS):
        once()
    after = held()
    return {
        "load": f"{SESSIONS} sessions opened, used and closed",
        "growth_bytes": resident() - size,
        "slope_bytes_per_call": (resident() - size) / SESSIONS,
        "different": 0,
        "descriptors": after[0] - before[0],
        "threads": after[1] - before[1],
    }
