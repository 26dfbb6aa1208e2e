"""Sessions shared by threads, forked, used from asyncio, opened and closed many times."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import hat_export
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.runtime.self_test import noise_pixels
from hat_export.runtime.session import Session

CAPTIONS = ["a red heart", "two dogs run on a beach", "x"]

#: A forked process that takes longer hangs.
LONGEST = 120


def work(session: Session, seed: int) -> np.ndarray:
    """Everything that a session does, on inputs of a seed; float32 [2, 3]."""
    images = session.encode_images(noise_pixels(session.spec, 2, seed))
    return session.score(images, session.encode_texts(CAPTIONS))


def in_a_fork(call: Callable[[], object]) -> str:
    """The error that a call raises in a forked process, or nothing; fails if it hangs."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        text = ""
        try:
            call()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    end = time.monotonic() + LONGEST
    while os.waitpid(process, os.WNOHANG) == (0, 0):
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            pytest.fail("hangs in a forked process")
        time.sleep(0.01)
    with os.fdopen(read, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_share_a_session_and_get_the_same_bits(tiny_bundle: Path, threads: int) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=threads) as session:
        expected = [work(session, seed) for seed in range(8)]
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(lambda n: work(session, n % 8), range(64)))
    for number, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[number % 8])


def test_asyncio_runs_sessions_in_its_threads(tiny_bundle: Path) -> None:
    async def serve(session: Session) -> list[np.ndarray]:
        return await asyncio.gather(*(asyncio.to_thread(work, session, n % 4) for n in range(40)))

    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        expected = [work(session, seed) for seed in range(4)]
        found = asyncio.run(serve(session))
    for number, scores in enumerate(found):
        np.testing.assert_array_equal(scores, expected[number % 4])


def test_a_fork_after_opening_is_an_error_with_a_remedy_and_no_hang(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=2) as session:
        expected = work(session, 1)
        error = in_a_fork(lambda: work(session, 1))
        assert error.startswith(BackendUnavailableError.__name__)
        assert "open it in the new process" in error
        np.testing.assert_array_equal(work(session, 1), expected)  # the parent goes on


def test_with_one_thread_a_fork_after_opening_works(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=1) as session:
        expected = work(session, 1)
        assert in_a_fork(lambda: np.testing.assert_array_equal(work(session, 1), expected)) == ""


def test_a_forked_process_can_open_its_own(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=2) as session:
        expected = work(session, 1)

        def own() -> None:
            with hat_export.open_bundle(tiny_bundle, threads=2) as opened:
                np.testing.assert_array_equal(work(opened, 1), expected)

        assert in_a_fork(own) == ""


def _in_a_worker(bundle: Path) -> np.ndarray:
    with hat_export.open_bundle(bundle, threads=2) as session:
        return work(session, 1)


def test_spawned_processes_work(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle, threads=2) as session:
        expected = work(session, 1)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            np.testing.assert_array_equal(pool.apply(_in_a_worker, (tiny_bundle,)), expected)


def test_the_torch_session_refuses_to_work_after_a_fork(tiny_checkpoint: Path) -> None:
    from hat_export.runtime.backends.opening import open_target

    with open_target(tiny_checkpoint, "torch", 2, None, None) as session:
        assert "open it in the new process" in in_a_fork(lambda: work(session, 1))


def test_a_closed_session_says_so(tiny_bundle: Path) -> None:
    with hat_export.open_bundle(tiny_bundle) as session:
        pass
    with pytest.raises(InputError, match="closed"):
        session.encode_texts(["a"])


def test_opening_and_closing_leaves_no_descriptor_and_no_thread(tiny_bundle: Path) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))  # noqa: PTH208

    def open_and_close() -> None:
        with hat_export.open_bundle(tiny_bundle, threads=2, verify=False) as session:
            work(session, 1)

    open_and_close()
    before = held()
    for _ in range(10):
        open_and_close()
    assert held() == before
