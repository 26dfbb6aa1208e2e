"""A cluster of two real nodes, by its address: the same index and report, also without one node."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from picture_samples import pictures, write_zip
from places import DEMO
from ray_nodes import RayNode, workers_of

pytest.importorskip("ray", reason="ray isn't installed; it comes with the extra [ray]")

COUNT = 240


@dataclass(frozen=True)
class Cluster:
    """Two nodes of two cores each, so that three workers need both."""

    head: RayNode
    other: RayNode

    @property
    def options(self) -> tuple[str, ...]:
        return ("--engine", "ray", "--address", self.head.address, "--workers", "3")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # sockets: pytest's own paths are too long
    try:
        with RayNode(2, folder) as head:
            head.wait()
            with RayNode(2, folder, head) as other:
                other.wait()
                yield Cluster(head, other)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def start(environment: dict[str, str] | None, *arguments: object) -> subprocess.Popen[str]:
    module, *rest = map(str, arguments)
    return subprocess.Popen(
        [sys.executable, "-m", f"hat_export.cli.{module}", *rest],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_an_index_by_two_nodes_of_which_one_dies(
    tiny_bundle: Path, cluster: Cluster, tmp_path: Path
) -> None:
    source = write_zip(tmp_path / "images.zip", pictures(COUNT, seed=3))
    local, hurt = tmp_path / "local.hatidx", tmp_path / "hurt.hatidx"
    small = ("--batch", 2, "--commit", 4)
    finish(start(None, "export", "index", tiny_bundle, source, local, *small, "--threads", 1))
    process = start(
        cluster.head.environment,
        *("export", "index", tiny_bundle, source, hurt, *small, *cluster.options),
    )
    deadline = time.monotonic() + 200
    begun = 0
    while not (workers_of(cluster.other.pid) and hurt.stat().st_size > begun > 0):
        assert process.poll() is None, "it was done before a node could be killed"
        assert time.monotonic() < deadline
        begun = begun or (hurt.stat().st_size if hurt.exists() else 0)
        time.sleep(0.01)
    cluster.other.kill()
    output = finish(process)
    assert f"{COUNT} added" in output
    assert hurt.read_bytes() == local.read_bytes()


@pytest.mark.full
def test_an_index_and_a_report_by_two_nodes(
    tiny_bundle: Path, cluster: Cluster, tmp_path: Path
) -> None:
    source = write_zip(tmp_path / "images.zip", pictures(COUNT, seed=3))
    options = ("parity", tiny_bundle, tiny_bundle, "--data", DEMO / "emojicap", "--limit", 100)
    made = []
    for name, environment, engine in (
        ("local", None, ()),
        ("cluster", cluster.head.environment, cluster.options),
    ):
        index, cache = tmp_path / f"{name}.hatidx", tmp_path / name
        few = ("--batch", 4, "--threads", 1, *engine)
        said = finish(start(environment, "export", "index", tiny_bundle, source, index, *few))
        said += finish(
            start(environment, "bench", *options, "--cache", cache, "--max-drop", "r1=50", *few)
        )
        if engine:
            assert said.count("workers on 2 nodes") >= 2, said
        files = sorted(path for path in cache.rglob("*") if path.is_file())
        made.append([index.read_bytes(), *(path.read_bytes() for path in files)])
    assert made[0] == made[1]
