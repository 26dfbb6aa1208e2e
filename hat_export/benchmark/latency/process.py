"""Start and memory of a target, each measured in a process of its own.

A process that has opened one target has paid for libraries and caches that the next one finds
ready, and its high-water mark of memory is that of all. So each target gets fresh processes: some
that stop at the first result, and one that goes on to the largest batches.

Started as ``python -m hat_export.benchmark.latency.process REQUEST``, it writes one JSON object.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hat_export.errors import HatError
from hat_export.spec import ModelSpec

#: What is included, for reports.
INCLUDED = (
    "from the start of a new Python process to the first score of one image and one caption: "
    "interpreter, imports, opening with hashes and self-test, first calls; files in the page cache"
)


@dataclass(frozen=True)
class Target:
    """What a process opens.

    Attributes:
        path: Checkpoint or bundle.
        backend: What runs bundles.
        threads: Threads of the session.
        spec: Architecture of a checkpoint that does not tell it, as JSON text.
        vocabulary: Vocabulary of a checkpoint that has none beside it.
    """

    path: str
    backend: str
    threads: int
    spec: str | None = None
    vocabulary: str | None = None


@dataclass(frozen=True)
class Start:
    """One start of a process; seconds since it was asked for.

    Attributes:
        python: The interpreter runs.
        opened: The session is there.
        first_result: The first score is there.
        peak_bytes: High-water mark of resident memory; None where the system doesn't tell.
    """

    python: float
    opened: float
    first_result: float
    peak_bytes: int | None


def start(target: Target, images: int = 1, captions: int = 1, words: int = 16) -> Start:
    """Start a process that opens a target and scores some images with some captions.

    Raises:
        HatError: with the process's own message, if it fails.
    """
    request = json.dumps(asdict(target) | {"work": [images, captions, words]})
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "hat_export.benchmark.latency.process", request],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise HatError(f"{target.path}: a process that opens it for a cold start failed: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    python, opened, first = (found[name] - begun for name in ("python", "opened", "first_result"))
    return Start(python, opened, first, found["peak_bytes"])


def _main(request: dict[str, Any], python: float) -> None:
    import numpy as np

    from hat_export.base.machine import peak_memory
    from hat_export.bundle.bundle import is_bundle
    from hat_export.runtime.backends import open_checked
    from hat_export.runtime.self_test import noise_captions, noise_pixels

    path, threads = Path(request["path"]), request["threads"]
    if is_bundle(path):
        session = open_checked(path, request["backend"], threads, True)
    else:
        from hat_export.runtime.backends.torch_backend import open_checkpoint

        spec = None if request["spec"] is None else ModelSpec.parse(request["spec"], "--spec")
        vocabulary = None if request["vocabulary"] is None else Path(request["vocabulary"])
        session = open_checkpoint(path, spec, vocabulary, threads)
    with session:
        opened = time.monotonic()
        images, captions, words = request["work"]
        ids, _ = noise_captions(session.spec, captions, words, seed=1)
        regions = session.encode_images(noise_pixels(session.spec, images, seed=1))
        session.score(regions, session.encode_texts(ids, np.ones_like(ids)))
        moments = {"python": python, "opened": opened, "first_result": time.monotonic()}
        print(json.dumps(moments | {"peak_bytes": peak_memory()}))


if __name__ == "__main__":
    arrived = time.monotonic()
    try:
        _main(json.loads(sys.argv[1]), arrived)
    except HatError as error:
        sys.exit(str(error))
