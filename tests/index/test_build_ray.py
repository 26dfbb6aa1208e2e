"""Indexing on Ray: the same index, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from hat_export.index.images import ImageIndex
from hat_export.index.record_file import IndexRecoveryWarning
from picture_samples import pictures, write_zip
from ray_nodes import workers_of

pytest.importorskip("ray", reason="ray isn't installed; it comes with the extra [ray]")

COUNT = 400


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = pictures(COUNT, seed=11) | {"broken.png": b"words"}
    return write_zip(tmp_path_factory.mktemp("ray") / "images.zip", made)


def start(bundle: Path, source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hat_export.cli.export", "index", str(bundle), str(source)]
    command += [str(out), "--batch", "4", "--commit", "16", "--quiet", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def test_one_worker_or_two_with_one_killed_make_the_index_of_no_ray(
    tiny_bundle: Path, source: Path, tmp_path: Path
) -> None:
    local, one, hurt = (tmp_path / f"{name}.hatidx" for name in ("local", "one", "hurt"))
    process = start(tiny_bundle, source, hurt, "--engine", "ray", "--workers", "2")
    killed = None
    deadline = time.monotonic() + 120
    while killed is None and process.poll() is None:
        assert time.monotonic() < deadline
        workers = workers_of(process.pid) if hurt.exists() and length_of(hurt) > 0 else []
        if workers:
            killed = workers[0]
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.02)
    assert killed is not None, "it was done before a worker could be killed"
    assert f"{COUNT} added, 1 skipped" in finish(process)
    for out, options in ((local, ["--threads", "1"]), (one, ["--engine", "ray", "--workers", "1"])):
        assert f"{COUNT} added, 1 skipped" in finish(start(tiny_bundle, source, out, *options))
        assert out.read_bytes() == hurt.read_bytes(), f"{out.name} differs"


def length_of(path: Path) -> int:
    with warnings.catch_warnings():
        # What is being appended looks like an interrupted append to a reader.
        warnings.simplefilter("ignore", IndexRecoveryWarning)
        with ImageIndex.open(path) as index:
            return len(index)
