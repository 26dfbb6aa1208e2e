"""The public Python API: two ways to get a session, and the check that they retrieve the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hat_export.runtime.backends.opening import load, open_bundle

if TYPE_CHECKING:
    from hat_export.base.ray import RayWorkers
    from hat_export.parity.outcome import ParityOutcome
    from hat_export.spec import ModelSpec

__all__ = ["check_parity", "load", "open_bundle"]


def check_parity(
    reference: Path | str,
    candidate: Path | str,
    data: Path | str,
    *,
    images: Sequence[Path | str] = (),
    split: str = "test",
    captions: int = 5,
    limit: int | None = None,
    max_drop: str | None = None,
    strict: bool = False,
    folds: int | None = None,
    attribution: bool | None = None,
    localize: bool = False,
    cache: Path | str | None = None,
    batch: int = 50,
    backend: str = "onnxruntime",
    reference_backend: str | None = None,
    threads: int | None = None,
    spec: ModelSpec | None = None,
    vocabulary: Path | str | None = None,
    ray: RayWorkers | None = None,
) -> ParityOutcome:
    """Does a candidate retrieve what a reference retrieves? What ``hat-bench parity`` runs.

    Args:
        reference: Checkpoint or bundle.
        candidate: Checkpoint or bundle.
        data: A dataset, see :func:`hat_export.data.readers.read_dataset`.
        images: Folders or zips with its pictures; default: beside it.
        split: Split of the dataset.
        captions: Captions per image.
        limit: Use only so many images, evenly spread.
        max_drop: Budget in points, such as ``r1=0.2,rsum=0.5``; default:
            :data:`hat_export.parity.budget.DEFAULT_BUDGET`.
        strict: Whether what can't be judged has failed.
        folds: Show the mean over so many folds too.
        attribution: Whether to name the component at fault; None: if a rank changed beyond ties.
        localize: Whether to compare the graphs layer by layer.
        cache: Where features and scores are kept; None: nothing is kept.
        batch: Images or captions encoded at a time.
        backend: What runs bundles.
        reference_backend: What runs the reference if it is a bundle; default: as ``backend``.
        threads: Default: one per core.
        spec: Architecture, where a checkpoint doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside a checkpoint.
        ray: Workers of :mod:`hat_export.base.ray` that encode and score; None: this process.

    Returns:
        The verdict with everything behind it;
        :func:`hat_export.parity.report.parity_report` makes the report.

    Raises:
        HatError: if a model, the dataset or the cache can't be used.
    """
    from hat_export.data.readers import read_dataset
    from hat_export.parity.budget import DEFAULT_BUDGET, parse_budget
    from hat_export.parity.outcome import ParitySettings, Side
    from hat_export.parity.run import run_parity

    settings = ParitySettings(
        budget=parse_budget(DEFAULT_BUDGET if max_drop is None else max_drop),
        strict=strict,
        cache=None if cache is None else Path(cache),
        folds=folds,
        batch=batch,
        attribution=attribution,
        localize=localize,
        threads=threads,
        ray=ray,
    )
    dataset = read_dataset(Path(data), split, [Path(path) for path in images])
    first, second = (
        Side.of(Path(target), name, spec, vocabulary)
        for target, name in ((reference, reference_backend or backend), (candidate, backend))
    )
    return run_parity(first, second, dataset.take(captions).limit(limit), settings)
