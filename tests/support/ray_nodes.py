"""Ray clusters of real nodes, and their processes, for the tests of what runs on Ray."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hat_export.base.closing import Closing


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def children(pid: int) -> list[tuple[int, str]]:
    """Processes below a process, with their names."""
    below: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        below.setdefault(int(rest.split()[1]), []).append((int(stat.parent.name), name))
    found, waiting = [], [pid]
    while waiting:
        new = [child for parent in waiting for child in below.get(parent, [])]
        found += new
        waiting = [child for child, _ in new]
    return found


def workers_of(pid: int) -> list[int]:
    """Processes of the actors below a process."""
    return [
        child
        for child, name in children(pid)
        if name.startswith("ray::MapWorker") or "_Worker" in name
    ]


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # A dead node is noticed within seconds rather than a quarter of a minute.
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "3",
    }


class RayNode(Closing):
    """A node: its own raylet, object store and workers, as `ray start` begins them on a machine.

    Args:
        cores: That it offers.
        temporary: Folder of its sockets and logs; its path must be short.
        head: The cluster to join; None: this one is the head.

    Attributes:
        environment: Of whoever uses the cluster: it takes only those who know its token.
    """

    def __init__(self, cores: int, temporary: Path, head: RayNode | None = None) -> None:
        self.port = head.port if head else free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = head.environment if head else _environment()
        command = [str(Path(sys.executable).with_name("ray")), "start", "--block"]
        command += ["--num-cpus", str(cores), "--object-store-memory", str(100 << 20)]
        command += ["--disable-usage-stats", "--node-ip-address", "127.0.0.1"]
        if head:
            command += ["--address", self.address]
        else:
            command += ["--head", "--port", str(self.port), "--temp-dir", str(temporary)]
            command += ["--include-dashboard", "false"]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, seconds: float = 120.0) -> None:
        """Until the node takes work: its raylet has started its agents."""
        deadline = time.monotonic() + seconds
        while not any(name.startswith("ray::RuntimeEnv") for _, name in children(self.pid)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the Ray node didn't start")
            time.sleep(0.1)

    def kill(self) -> None:
        """Everything of the node at once, as when its machine loses power."""
        if self._process.poll() is None:
            for pid, _ in [(self.pid, ""), *children(self.pid)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self._process.wait()

    def close(self) -> None:
        self.kill()
