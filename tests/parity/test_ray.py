"""Parity on Ray: the same features, scores and ranks, whatever happens to the workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hat_export
from hat_export.base.machine import describe_machine
from hat_export.base.ray import RayWorkers, ray_cluster
from hat_export.data.dataset import ImageStore
from hat_export.errors import BackendUnavailableError, DatasetError
from hat_export.parity.embeddings import PictureBatch, encode_batch
from hat_export.parity.ray import require_like
from picture_samples import pictures, write_folder
from ray_nodes import workers_of

IMAGES = 60


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    found = pictures(IMAGES, seed=5)
    write_folder(folder / "images", found)
    words = "red dog cat old house tree runs sleeps".split()
    random = np.random.default_rng(0)
    images = [
        {
            "filename": name,
            "split": "test",
            "sentences": [{"raw": " ".join(random.choice(words, 2 + n))} for n in range(5)],
        }
        for name in found
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images, "dataset": "small"}))
    return folder


def start(bundle: Path, data: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "hat_export.cli.bench", "parity", str(bundle), str(bundle)]
    command += ["--data", str(data), "--batch", "2", "--threads", "1", "--cache", str(out)]
    command += ["--attribution", "--max-drop", "r1=50", "--report", f"{out}.json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def judged(out: Path) -> dict[str, Any]:
    """A report's data without what tells of the run: time, memory, cache, machine."""
    data: dict[str, Any] = json.loads(Path(f"{out}.json").read_text())["data"]
    for name in ("seconds", "peak_memory_bytes", "private_memory_bytes", "environment"):
        del data[name]
    return data


def kept(out: Path) -> dict[str, bytes]:
    """Every file of a cache: features and scores."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_one_worker_or_two_with_one_killed_report_what_no_ray_reports(
    tiny_bundle: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="ray isn't installed; it comes with the extra [ray]")
    local, one, hurt = (tmp_path / name for name in ("local", "one", "hurt"))
    process = start(tiny_bundle, data, hurt, "--engine", "ray", "--workers", "2")
    killed = None
    deadline = time.monotonic() + 200
    while killed is None and process.poll() is None:
        assert time.monotonic() < deadline
        encoded = list(hurt.glob("images-*.hatidx"))
        # The file has grown beyond its header: some batches are done, most are not.
        if encoded and encoded[0].stat().st_size > 100_000 and (found := workers_of(process.pid)):
            killed = found[0]
            os.kill(killed, signal.SIGKILL)
        time.sleep(0.01)
    assert killed is not None, "it was done before a worker could be killed"
    assert "pieces done by" in finish(process)
    finish(start(tiny_bundle, data, local))
    finish(start(tiny_bundle, data, one, "--engine", "ray", "--workers", "1"))
    for out in (one, hurt):
        assert judged(out) == judged(local), out.name
        assert kept(out) == kept(local), out.name
    # What Ray has made is a cache like any other.
    again = finish(start(tiny_bundle, data, hurt))
    assert f"{IMAGES} images and" in again
    assert judged(hurt) | {"reused": None} == judged(local) | {"reused": None}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:70000"])
def test_a_wrong_address_is_told_at_once(address: str) -> None:
    pytest.importorskip("ray", reason="ray isn't installed; it comes with the extra [ray]")
    with (
        pytest.raises(BackendUnavailableError, match=f"nothing answers at {address}"),
        ray_cluster(RayWorkers(1, 1, address)),
    ):
        pass


def test_a_worker_refuses_to_work_on_another_kind_of_machine() -> None:
    with pytest.raises(BackendUnavailableError, match='instead of "Abacus"'):
        require_like({"cpu": "Abacus"})
    assert describe_machine()["cpu"] != "Abacus"


def test_a_picture_that_has_changed_is_refused(tiny_bundle: Path, data: Path) -> None:
    store = ImageStore([data / "images"])
    with (
        hat_export.open_bundle(tiny_bundle, threads=1) as session,
        pytest.raises(DatasetError, match="another picture"),
    ):
        encode_batch(session, store, PictureBatch(("0000.png",), ("0" * 64,)))
