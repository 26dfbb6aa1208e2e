"""Indexing on many machines: batches of images on Ray, sessions as actors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from hat_export.base.progress import Progress
from hat_export.base.ray import RayWorkers, map_with_ray
from hat_export.data.sources import ImageReader, ImageRef
from hat_export.index.build import EncodedBatch, encode_refs
from hat_export.runtime.backends import open_checked
from hat_export.runtime.session import Session


def encode_with_ray(
    workers: RayWorkers,
    bundle: Path,
    backend: str,
    progress: Progress,
    batches: Iterable[Sequence[ImageRef]],
) -> Iterator[EncodedBatch]:
    """Encode batches in Ray actors; an engine of :func:`hat_export.index.build.index_images`.

    Args:
        workers: Who encodes.
        bundle: The model; under the same path on every machine.
        backend: What runs it.
        progress: Told at the end by how many it was done.
        batches: References, readable under the same paths on every machine.

    Yields:
        What became of each batch, in order.

    Raises:
        BackendUnavailableError: if Ray isn't installed, or there is no cluster at the address.
        HatError: if a worker can't open the bundle.
    """
    encoder = _Encoder(bundle.absolute(), backend, workers.threads)
    # A worker has a working folder of its own.
    absolute = (
        [replace(ref, path=str(Path(ref.path).absolute())) for ref in refs] for refs in batches
    )
    return map_with_ray(workers, encoder, absolute, progress)


@dataclass(frozen=True)
class _Encoder:
    """Encodes batches; opens its session with the first."""

    bundle: Path
    backend: str
    threads: int

    @cached_property
    def _session(self) -> Session:
        return open_checked(self.bundle, self.backend, self.threads, verify=True)

    @cached_property
    def _reader(self) -> ImageReader:
        return ImageReader()

    def __call__(self, refs: list[ImageRef]) -> EncodedBatch:
        return encode_refs(self._session, self._reader, refs)
