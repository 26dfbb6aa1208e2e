"""Work on many machines: a function applied to items by Ray actors, with results in order.

The function travels to every worker once and lives there as long as the worker does, so that what
it opens is opened once. A worker that dies, alone or with its machine, is started again, and what
it had in hand is done again.
"""

from __future__ import annotations

import logging
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from hat_export.base.progress import SILENT, Progress
from hat_export.errors import BackendUnavailableError, HatError

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class RayWorkers:
    """Who works.

    Attributes:
        workers: How many.
        threads: Threads of each, and the cores that Ray sets aside for it.
        address: Of the cluster; None starts one on this machine.
    """

    workers: int
    threads: int
    address: str | None = None


def map_with_ray(
    workers: RayWorkers,
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    progress: Progress = SILENT,
) -> Iterator[ResultT]:
    """Apply a function to items in Ray actors.

    Args:
        workers: Who.
        function: Can be pickled, and says the same of an item whoever applies it.
        items: Can be pickled, results too.
        progress: Told at the end by how many workers it was done.

    Yields:
        Results in the order of the items.

    Raises:
        BackendUnavailableError: if Ray isn't installed, or there is no cluster at the address.
        HatError: what the function raises, with the name of the machine.
    """
    # An item is one row, one block: how Ray cuts rows into blocks must not change what is
    # computed together.
    rows = [{"item": pickle.dumps(item)} for item in items]
    if not rows:
        return
    with ray_cluster(workers) as ray:
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=(pickle.dumps(function),),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers.workers),
            num_cpus=workers.threads,
        )  # Ray Data restarts its actors and their tasks without end.
        seen: set[tuple[str, str]] = set()
        for row in done.iter_rows():
            # Written by our own workers a moment ago.
            result: ResultT | HatError = pickle.loads(row["result"])
            if isinstance(result, HatError):
                raise result
            seen.add((row["node"], row["worker"]))
            yield result
        nodes = len({node for node, _ in seen})
        progress.step(f"Ray: {len(rows)} pieces done by {len(seen)} workers on {nodes} nodes")


@contextmanager
def ray_cluster(workers: RayWorkers) -> Iterator[Any]:
    """The cluster, for as long as the context lasts; a context within another changes nothing.

    Yields:
        Ray's module.

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
    if ray.is_initialized():
        yield ray
        return
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _start(ray, workers)
    try:
        yield ray
    finally:
        ray.shutdown()


class _Worker:
    """The function in an actor.

    It is unpickled with the first item, not before: an actor whose constructor fails would be
    started again without end.
    """

    def __init__(self, function: bytes) -> None:
        self._pickled = function
        self._function: Callable[[Any], Any] | None = None

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """Apply it to the items of some rows."""
        import ray

        context = ray.get_runtime_context()
        count = len(rows["item"])
        return {
            "result": [pickle.dumps(self._apply(item)) for item in rows["item"]],
            "node": [context.get_node_id()] * count,
            "worker": [context.get_actor_id()] * count,
        }

    def _apply(self, item: bytes) -> Any:
        try:
            if self._function is None:
                self._function = pickle.loads(self._pickled)
            return self._function(pickle.loads(item))
        except HatError as error:
            return type(error)(f"worker on {socket.gethostname()}: {error}")


def _require_answer(address: str) -> None:
    """Find a wrong address within seconds: Ray itself tries for minutes.

    Raises:
        BackendUnavailableError: if nothing listens at HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        return  # "auto", or a client's address: Ray's to understand
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise BackendUnavailableError(
            f"engine ray: nothing answers at {address} ({error}); start a cluster there with: "
            "ray start --head"
        ) from None


def _start(ray: Any, workers: RayWorkers) -> None:
    try:
        if workers.address is None:
            # One core besides the workers' own lets Ray Data run its reading tasks. Without
            # "local" it would join a cluster that somebody else has started here.
            ray.init(
                address="local",
                num_cpus=workers.workers * workers.threads + 1,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
            )
        else:
            _require_answer(workers.address)
            ray.init(address=workers.address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise BackendUnavailableError(f"engine ray: no cluster to be had ({line})") from None
