"""Encoding on many machines: batches of images on Ray, sessions as actors.

A worker that dies is started again and its batch given to another; results come back in order, so
the index is the same whatever the number of workers.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_export.backends import open_checked
from hat_export.errors import BackendUnavailableError
from hat_export.image_sources import ImageReader, ImageRef
from hat_export.indexing import EncodedBatch, encode_refs


@dataclass(frozen=True)
class RayWorkers:
    """Who encodes.

    Attributes:
        bundle: The model; under the same path on every machine.
        backend: What runs it.
        threads: Threads of each worker, and the cores that Ray sets aside for it.
        workers: How many workers.
        address: Of the cluster; None starts one on this machine.
    """

    bundle: Path
    backend: str
    threads: int
    workers: int
    address: str | None = None


def encode_with_ray(
    workers: RayWorkers, batches: Iterable[Sequence[ImageRef]]
) -> Iterator[EncodedBatch]:
    """Encode batches in Ray actors; an engine of :func:`hat_export.indexing.index_images`.

    Args:
        workers: Who encodes.
        batches: References, readable under the same paths on every machine.

    Yields:
        What became of each batch, in order.

    Raises:
        BackendUnavailableError: if Ray isn't installed, or there is no cluster at the address.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BackendUnavailableError(
            f"engine ray: {error}; install it with: pip install 'hat-export[ray]'"
        ) from None
    # A batch is one row: how Ray cuts rows into blocks must not change what is encoded together.
    rows = [{"batch": pickle.dumps(list(refs))} for refs in batches]
    if not rows:
        return
    started = not ray.is_initialized()
    if started:
        _start(ray, workers)
    try:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        ray.data.DataContext.get_current().enable_progress_bars = False
        encoded = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(workers,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers.workers),
            num_cpus=workers.threads,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in encoded.iter_rows():
            # Written by our own workers a moment ago.
            yield pickle.loads(row["batch"])
    finally:
        if started:
            ray.shutdown()


class _Worker:
    """A session in an actor."""

    def __init__(self, workers: RayWorkers) -> None:
        self._session = open_checked(workers.bundle, workers.backend, workers.threads, verify=True)
        self._reader = ImageReader()

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Encode the batches of some rows."""
        results = []
        for row in rows["batch"]:
            refs: list[ImageRef] = pickle.loads(row)
            results.append(pickle.dumps(encode_refs(self._session, self._reader, refs)))
        return {"batch": results}


def _start(ray: Any, workers: RayWorkers) -> None:
    try:
        if workers.address is None:
            # One core besides the workers' own lets Ray Data run its reading tasks.
            ray.init(
                num_cpus=workers.workers * workers.threads + 1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
            )
        else:
            ray.init(address=workers.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise BackendUnavailableError(f"engine ray: no cluster to be had ({line})") from None
