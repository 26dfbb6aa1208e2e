"""Does a candidate retrieve what the reference retrieves, and if not, which component lost it?

Runs everything in :mod:`hat_export.parity` on one dataset: encodes on both sides, scores, compares
ranks, judges the budget on intervals, and names the culprit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hat_export.base.atomic import locked_folder, partial_folder, scratch_folder
from hat_export.base.machine import environment, peak_memory, private_memory
from hat_export.base.progress import SILENT, Progress
from hat_export.base.ray import ray_cluster
from hat_export.bundle.bundle import is_bundle, read_manifest
from hat_export.bundle.precision import PRECISIONS
from hat_export.data.dataset import CaptionDataset
from hat_export.errors import BackendUnavailableError, InputError, OutputError
from hat_export.parity.attribution import Attribution, attribute
from hat_export.parity.budget import Judgement, Verdict, judge, overall
from hat_export.parity.changed_queries import ChangedQuery, look_up
from hat_export.parity.comparison import Parity, compare_scores
from hat_export.parity.embeddings import (
    DatasetDigests,
    Encode,
    EncodedDataset,
    EncoderKeys,
    encode_dataset,
    encoder_keys,
)
from hat_export.parity.outcome import LOOKED_UP, SIDES, ParityOutcome, ParitySettings, Side
from hat_export.parity.ray import encode_with_ray, score_with_ray
from hat_export.parity.scorer_check import OwnScores, ScorerCheck, check_scorers, own_scores
from hat_export.parity.scores import LevelScores, Scorer, TileWorkers, score_levels
from hat_export.parity.statistics import Delta, deltas
from hat_export.parity.top_k_overlap import Kept, top_kept
from hat_export.score.metrics import fold_mean

if TYPE_CHECKING:
    from hat_export.parity.localize import Localization

#: COCO's test split, whose 1K figures are means over five folds.
COCO_IMAGES, COCO_FOLDS = 5000, 5


class _Meter:
    """Seconds per part of a run, and its memory."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory: int | None = None

    def look(self) -> None:
        """Take a sample of the memory that isn't a mapped file."""
        now = private_memory()
        if now is not None:
            self.memory = max(now, self.memory or 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.look()
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class _Watched:
    """Passes progress on, and looks at the memory while loops go on."""

    progress: Progress
    meter: _Meter

    def step(self, message: str) -> None:
        self.progress.step(message)

    def count(self, what: str, done: int, total: int) -> None:
        self.meter.look()
        self.progress.count(what, done, total)


def run_parity(
    reference: Side,
    candidate: Side,
    dataset: CaptionDataset,
    settings: ParitySettings,
    progress: Progress = SILENT,
) -> ParityOutcome:
    """Compare two models on a dataset.

    Args:
        reference: What the candidate is held against.
        candidate: What is judged.
        dataset: Images and captions.
        settings: How.
        progress: Told before each step, and inside long loops.

    Returns:
        What was found; :func:`hat_export.parity.report.parity_report` shows it.

    Raises:
        InputError: if there is no such target, the folds don't divide the images, or features are
            NaN.
        DatasetError: if an image is missing or broken.
        IndexFileError: if a file of the cache is damaged.
        OutputError: if the cache can't be written.
    """
    for side in (reference, candidate):
        if not side.target.exists():  # said before minutes are spent on the other
            raise InputError(f"{side.target}: no such checkpoint or bundle")
    images = len(dataset.entries)
    folds = settings.folds or (COCO_FOLDS if images == COCO_IMAGES else None)
    if folds and images % folds:
        raise InputError(f"--folds {folds} does not divide {images} images")
    if settings.localize:
        _require_localizable(reference, candidate)
    meter = _Meter()
    with ExitStack() as stack:
        folder = _cache_folder(settings.cache, stack, progress)
        if settings.ray is not None:
            stack.enter_context(ray_cluster(settings.ray))
        run = _Run(dataset, settings, folder, meter, _Watched(progress, meter))
        sides = [run.encode(side, stack) for side in (reference, candidate)]
        scores = (
            run.score_side("reference", sides[0].encoded),
            run.score_side("candidate", sides[1].encoded),
        )
        progress.step("comparing")
        with meter.part("comparing"):
            judged = _judge(dataset, settings, folds, scores)
        checks = _checks((reference, candidate), [side.own for side in sides], scores)
        attribution = None
        changed = any(not item.tie for item in judged.parity.changed)
        if settings.attribution or (settings.attribution is None and changed):
            attribution = run.attribute((sides[0].encoded, sides[1].encoded), scores)
        localizations = run.localize(reference, candidate) if settings.localize else ()
        facts = run.facts([side.encoded for side in sides])
    verdict = overall(judged.judgements, settings.strict)
    if not all(check.passed for check in checks):
        verdict = Verdict.failed
    return ParityOutcome(
        (sides[0].name, sides[1].name),
        dataset,
        settings,
        verdict,
        judged.parity,
        judged.kept,
        judged.deltas,
        judged.judgements,
        checks,
        judged.levels,
        judged.changed,
        judged.folds,
        attribution,
        localizations,
        facts,
    )


@dataclass(frozen=True)
class _Encoded:
    """One side after its session is closed."""

    name: str
    encoded: EncodedDataset
    own: OwnScores


class _Run:
    """The steps of one comparison, and what they share."""

    def __init__(
        self,
        dataset: CaptionDataset,
        settings: ParitySettings,
        folder: Path,
        meter: _Meter,
        progress: Progress,
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._folder = folder
        self._meter = meter
        self._progress = progress
        self._threads = 1
        with meter.part("hashing pictures"):
            self._digests = DatasetDigests.read(dataset, progress)

    def encode(self, side: Side, stack: ExitStack) -> _Encoded:
        """Encode with one side; only one session is open at a time."""
        self._progress.step(f"opening {side.target}")
        opened = side.open(threads=self._settings.threads)
        with self._meter.part(f"encoding with {side.target.name}"), opened as session:
            self._threads = session.threads
            keys = encoder_keys(side.target, session)
            name = f"{side.target.name} ({session.backend})"
            self._progress.step(f"encoding with {name}")
            found = stack.enter_context(
                encode_dataset(
                    session,
                    keys,
                    self._dataset,
                    self._digests,
                    self._folder,
                    self._settings.batch,
                    self._progress,
                    self._encode_with(side, keys),
                )
            )
            for line in found.discarded:
                self._progress.step(line)
            images, captions = found.reused
            self._progress.step(f"{images} images and {captions} captions were in the cache")
            return _Encoded(name, found, own_scores(session, self._dataset))

    def score_side(self, role: str, side: EncodedDataset) -> LevelScores:
        """Scores of one side by itself."""
        with self._meter.part(f"scoring the {role}"):
            scorer = Scorer.of(side.spec)
            return self._score(side, side, scorer, f"captions scored by the {role}")

    def attribute(
        self,
        sides: tuple[EncodedDataset, EncodedDataset],
        scores: tuple[LevelScores, LevelScores],
    ) -> Attribution:
        """Swap components."""
        self._progress.step("looking for the component at fault")
        with (
            self._meter.part("attribution"),
            partial_folder(self._folder, "attribution") as work,
        ):
            return attribute(*sides, scores, self._dataset.owners, work, self._score)

    def localize(self, reference: Side, candidate: Side) -> tuple[Localization, ...]:
        """Compare the encoders' graphs layer by layer."""
        from hat_export.parity.graphs import localize_between, make_probe

        self._progress.step("comparing layer by layer")
        with self._meter.part("localization"):
            threads = self._settings.threads
            with candidate.open(threads=threads) as session:
                probe = make_probe(session, self._dataset)
            return localize_between(
                reference.target,
                partial(reference.open, threads=threads),
                candidate.target,
                probe,
                self._progress,
            )

    def facts(self, sides: Sequence[EncodedDataset]) -> dict[str, Any]:
        """Time, memory, cache, machine."""
        return {
            "seconds": {name: round(spent, 1) for name, spent in self._meter.seconds.items()},
            "peak_memory_bytes": peak_memory(),
            "private_memory_bytes": self._meter.memory,
            "reused": {
                role: {"images": side.reused[0], "captions": side.reused[1]}
                for role, side in zip(SIDES, sides, strict=True)
            },
            "scorers": [str(Scorer.of(side.spec)) for side in sides],
            "environment": environment(),
        }

    def _score(
        self, images: EncodedDataset, texts: EncodedDataset, scorer: Scorer, what: str
    ) -> LevelScores:
        workers = TileWorkers()
        if (ray := self._settings.ray) is not None:
            # Twice as many parts as workers, so that none waits long for the last.
            workers = TileWorkers(partial(score_with_ray, ray, self._progress), 2 * ray.workers)
        return score_levels(
            images, texts, scorer, self._folder, self._threads, self._progress, what, workers
        )

    def _encode_with(self, side: Side, keys: EncoderKeys) -> Encode | None:
        """Who encodes, if not this process."""
        ray, store = self._settings.ray, self._dataset.store
        if ray is None:
            return None
        target = side.target.absolute()
        return partial(encode_with_ray, ray, target, side.open, keys, store, self._progress)


@dataclass(frozen=True)
class _Judged:
    parity: Parity
    deltas: Mapping[str, Delta]
    judgements: tuple[Judgement, ...]
    levels: tuple[tuple[Parity, Mapping[str, Delta]], ...]
    changed: tuple[ChangedQuery, ...]
    folds: tuple[int, Mapping[str, float], Mapping[str, float]] | None
    kept: Kept | None


def _judge(
    dataset: CaptionDataset,
    settings: ParitySettings,
    folds: int | None,
    scores: tuple[LevelScores, LevelScores],
) -> _Judged:
    owners = dataset.owners
    before, after = scores
    parity = compare_scores(before.total, after.total, owners)
    found = deltas(parity)
    alone = [
        compare_scores(first, second, owners)
        for first, second in zip(before.levels, after.levels, strict=True)
    ]
    means = None
    if folds:
        first, second = (fold_mean(side.total, owners, folds) for side in scores)
        means = (folds, first, second)
    return _Judged(
        parity,
        found,
        judge(found, settings.budget, parity.images),
        tuple((item, deltas(item)) for item in alone),
        look_up(parity.changed[:LOOKED_UP], before.total, after.total, owners),
        means,
        top_kept(before.total, after.total, owners),
    )


def _checks(
    sides: Sequence[Side], own: Sequence[OwnScores], scores: Sequence[LevelScores]
) -> tuple[ScorerCheck, ...]:
    found: list[ScorerCheck] = []
    for name, side, some, levels in zip(SIDES, sides, own, scores, strict=True):
        manifest = read_manifest(side.target) if is_bundle(side.target) else None
        tolerance = PRECISIONS[manifest.precision if manifest else "fp32"].score_tolerance
        if manifest and manifest.quantization:
            # Products of 8 bits round differently in another batch: what its self-test allows.
            tolerance = max(tolerance, manifest.quantization.score_tolerance)
        found += check_scorers(name, some, levels.total, tolerance)
    return tuple(found)


def _require_localizable(reference: Side, candidate: Side) -> None:
    """Refuse what can't be localized before hours are spent on encoding.

    Raises:
        InputError: if the candidate has no graphs, or two bundles are of different layout.
        BackendUnavailableError: if a package is missing.
    """
    import importlib.util

    if not is_bundle(candidate.target):
        raise InputError(
            f"{candidate.target}: --localize needs a bundle as candidate; a checkpoint has no graph"
        )
    if is_bundle(reference.target):
        forms = [read_manifest(side.target).attention_form for side in (reference, candidate)]
        if forms[0] != forms[1]:
            raise InputError(
                f"{reference.target}: its graphs are of layout {forms[0]!r}, the candidate's of "
                f"{forms[1]!r}; export both with the same --target and attention, or localize "
                "against the checkpoint"
            )
    for package, extra in (("onnx", "export"), ("onnxruntime", "cpu")):
        if importlib.util.find_spec(package) is None:
            raise BackendUnavailableError(
                f"--localize needs {package}; install it with: pip install 'hat-export[{extra}]'"
            )


def _cache_folder(cache: Path | None, stack: ExitStack, progress: Progress) -> Path:
    """The cache for this run alone: another that uses it goes first."""
    if cache is None:
        return stack.enter_context(scratch_folder())
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if not os.access(cache, os.W_OK):
            raise OutputError(f"{cache}: is read-only; name another folder with --cache")
        waiting = partial(progress.step, f"waiting for another run that uses {cache}")
        stack.enter_context(locked_folder(cache, waiting))
    except OSError as error:
        raise OutputError(
            f"{cache}: can't be used ({error.strerror}); name another folder with --cache"
        ) from None
    return cache
