"""The Triton Inference Server that nvidia-pytriton carries, on this machine.

For trying a repository out, for tests and for measurements. It has the Python backend and no other:
repositories need ``--backend python``. In production the server comes from NVIDIA's container.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path

from hat_export.base.closing import Closing
from hat_export.errors import BackendUnavailableError


def server_folder() -> Path:
    """Where nvidia-pytriton keeps the server.

    Raises:
        BackendUnavailableError: if it isn't installed, or not for this Python.
    """
    # The package itself is not imported: it and numpy 2 don't go together, and nothing of it is
    # needed but the server.
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        raise BackendUnavailableError(
            "no Triton Inference Server here; install one with: "
            "pip install --no-deps nvidia-pytriton"
        )
    folder = Path(found.submodule_search_locations[0]) / "tritonserver"
    if not _stub(folder).is_file():
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise BackendUnavailableError(
            f"{folder}: no Python backend for Python {version}; use one of "
            + ", ".join(sorted(path.name for path in (folder / "python_backend_stubs").iterdir()))
        )
    return folder


def _stub(folder: Path) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "python_backend_stubs" / version / "triton_python_backend_stub"


class LocalServer(Closing):
    """A running server.

    Args:
        repository: The model repository.
        wait: Seconds that it may take until every model is ready.

    Attributes:
        http: ``host:port`` of the HTTP service.
        grpc: ``host:port`` of the gRPC service.

    Raises:
        BackendUnavailableError: if there is no server, or it doesn't become ready; with the end
            of its log.
    """

    def __init__(self, repository: Path, wait: float = 120.0) -> None:
        folder = server_folder()
        ports = _free_ports(3)
        self.http, self.grpc = (f"127.0.0.1:{port}" for port in ports[:2])
        self._work = tempfile.TemporaryDirectory()
        work = Path(self._work.name)
        # The server looks for the stub of its Python backend beside that backend.
        shutil.copytree(folder / "backends", work / "backends")
        shutil.copy2(_stub(folder), work / "backends" / "python")
        self._log = work / "server.log"
        libraries = [str(folder.parents[1] / "nvidia_pytriton.libs")]
        libraries.append(str(sysconfig.get_config_var("LIBDIR")))
        environment = os.environ | {
            # The stub takes its packages from the first python3 of the path.
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "PYTHONPATH": sysconfig.get_path("purelib"),
        }
        command = [
            str(folder / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={work / 'backends'}",
            *("--http-address=127.0.0.1", f"--http-port={ports[0]}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={ports[2]}"),
            "--exit-timeout-secs=3",  # it waits so long for clients that keep a connection open
        ]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        try:
            self._wait_until_ready(wait)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop it."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._work.cleanup()

    def _wait_until_ready(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        while True:
            try:
                with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=1):
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").splitlines()
                errors = [line for line in lines if line.startswith("E")] or lines[-5:]
                raise BackendUnavailableError(
                    f"the server did not become ready: {' / '.join(errors[-5:])}"
                )
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
