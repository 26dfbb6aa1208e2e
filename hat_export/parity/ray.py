"""Evaluation on many machines: a dataset encoded and scored by Ray actors.

Features and scores are the same bits as those of one machine, so the cache that they go into needs
no mark of who computed them. Therefore a worker refuses to work on another kind of CPU, with other
versions or with another model than where the command runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from hat_export.base.machine import describe_machine
from hat_export.base.packages import package_versions
from hat_export.base.progress import Progress
from hat_export.base.ray import RayWorkers, map_with_ray
from hat_export.data.dataset import PictureStore
from hat_export.errors import BackendUnavailableError
from hat_export.parity.embeddings import Batch, EncoderKeys, Features, encode_batch, encoder_keys
from hat_export.parity.scores import Levels, TileScorer
from hat_export.runtime.session import Session
from hat_export.score.tiles import Tile


class OpenSession(Protocol):
    """Opens a session on one target; can be pickled."""

    def __call__(self, *, threads: int | None) -> Session:
        """A session of so many threads; None: one per core."""


def encode_with_ray(
    workers: RayWorkers,
    target: Path,
    open_session: OpenSession,
    keys: EncoderKeys,
    store: PictureStore,
    progress: Progress,
    batches: Iterable[Batch],
) -> Iterator[Features]:
    """Encode in Ray actors; for :func:`hat_export.parity.embeddings.encode_dataset`.

    Args:
        workers: Who encodes.
        target: Bundle or checkpoint, under the same path on every machine.
        open_session: Opens a session on it.
        keys: What recognises its encoders here.
        store: Of the pictures, under the same paths on every machine.
        progress: Told at the end by how many it was done.
        batches: Of pictures or captions.

    Yields:
        Features of each batch, in order.

    Raises:
        BackendUnavailableError: if there is no Ray or no cluster, or a worker isn't like this
            machine.
        HatError: if a worker can't open the target or a picture.
    """
    encoder = _Encoder(_here(), target, open_session, workers.threads, keys, store)
    return map_with_ray(workers, encoder, batches, progress)


def score_with_ray(
    workers: RayWorkers,
    progress: Progress,
    scorer: TileScorer,
    tiles: Iterable[Tile],
) -> Iterator[Levels]:
    """Score in Ray actors; for :func:`hat_export.parity.scores.score_levels`.

    Args:
        workers: Who scores; they read the features' files under the same paths.
        progress: Told at the end by how many it was done.
        scorer: Scores a tile.
        tiles: Of images and captions.

    Yields:
        Scores of each tile, in order.

    Raises:
        BackendUnavailableError: as :func:`encode_with_ray`.
        IndexFileError: if a worker doesn't find the features.
    """
    scorer = replace(scorer, threads=workers.threads)
    return map_with_ray(workers, _Scorer(_here(), scorer), tiles, progress)


@dataclass(frozen=True)
class _Encoder:
    """Encodes batches; opens its session with the first."""

    like: dict[str, Any]
    target: Path
    open: OpenSession
    threads: int
    keys: EncoderKeys
    store: PictureStore

    @cached_property
    def _session(self) -> Session:
        require_like(self.like)
        session = self.open(threads=self.threads)
        if encoder_keys(self.target, session) != self.keys:
            session.close()
            raise BackendUnavailableError(
                f"{self.target}: isn't the model that it is where the command runs; "
                "copy it there, or use a folder that all machines share"
            )
        return session

    def __call__(self, batch: Batch) -> Features:
        return encode_batch(self._session, self.store, batch)


@dataclass(frozen=True)
class _Scorer:
    """Scores tiles on a machine that is like the one where the command runs."""

    like: dict[str, Any]
    scorer: TileScorer

    @cached_property
    def _checked(self) -> TileScorer:
        require_like(self.like)
        return self.scorer

    def __call__(self, tile: Tile) -> Levels:
        return self._checked(tile)


def _here() -> dict[str, Any]:
    """What the bits of a result depend on."""
    return {"cpu": describe_machine()["cpu"], **package_versions()}


def require_like(expected: dict[str, Any]) -> None:
    """Refuse a machine whose results could differ.

    Raises:
        BackendUnavailableError: naming what differs.
    """
    found = _here()
    names = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if names:
        values = "; ".join(
            f"{name}: {json.dumps(found.get(name))} instead of {json.dumps(expected.get(name))}"
            for name in names
        )
        raise BackendUnavailableError(
            f"{values}: features and scores could differ from those of the machine where the "
            "command runs; start it on a machine like the workers"
        )
