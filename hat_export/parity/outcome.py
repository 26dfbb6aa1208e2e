"""A comparison: its two sides, how it is made, and what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hat_export.base.ray import RayWorkers
from hat_export.data.dataset import CaptionDataset
from hat_export.parity.attribution import Attribution
from hat_export.parity.budget import Judgement, Verdict
from hat_export.parity.changed_queries import ChangedQuery
from hat_export.parity.comparison import Parity
from hat_export.parity.ray import OpenSession
from hat_export.parity.scorer_check import ScorerCheck
from hat_export.parity.statistics import Delta
from hat_export.parity.top_k_overlap import Kept
from hat_export.runtime.backends.opening import open_target

if TYPE_CHECKING:
    from hat_export.parity.localize import Localization
    from hat_export.spec import ModelSpec

SIDES = ("reference", "candidate")

#: Changed queries for which reports say what was retrieved; a column of a matrix in a file takes
#: as many reads as there are images.
LOOKED_UP = 500


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        target: Bundle or checkpoint.
        open: Opens a session on it.
    """

    target: Path
    open: OpenSession

    @classmethod
    def of(
        cls, target: Path, backend: str, spec: ModelSpec | None, vocabulary: Path | str | None
    ) -> Side:
        """One side, which a worker with another working folder can open too.

        Args:
            target: Checkpoint or bundle.
            backend: What runs it if it is a bundle.
            spec: Architecture, where a checkpoint doesn't tell it.
            vocabulary: ``vocab.txt``, where it isn't beside a checkpoint.
        """
        if vocabulary is not None:
            vocabulary = Path(vocabulary).absolute()
        opened = partial(open_target, target.absolute(), backend, spec=spec, vocabulary=vocabulary)
        return cls(target, opened)


@dataclass(frozen=True)
class ParitySettings:
    """How to compare.

    Attributes:
        budget: Largest allowed drop in points by key of
            :data:`hat_export.parity.budget.BUDGET_KEYS`.
        strict: Whether what can't be judged has failed.
        cache: Folder of the features and scores; None for one that is deleted afterwards.
        folds: Folds whose mean is shown too; None: five for COCO's 5,000 images, else none.
        batch: Images or captions encoded at a time.
        attribution: Whether to name the culprit; None: if a rank changed beyond ties.
        localize: Whether to compare the encoders' graphs layer by layer.
        gallery: Changed queries shown with pictures.
        threads: Threads of each session and of the scores here; None: one per core.
        ray: Who encodes and scores instead; None: this process.
    """

    budget: Mapping[str, float]
    strict: bool = False
    cache: Path | None = None
    folds: int | None = None
    batch: int = 50
    attribution: bool | None = None
    localize: bool = False
    gallery: int = 20
    threads: int | None = None
    ray: RayWorkers | None = None


@dataclass(frozen=True)
class ParityOutcome:
    """Everything that a comparison found.

    Attributes:
        names: Reference and candidate, for reports.
        dataset: What they were compared on.
        settings: How.
        verdict: Passed, failed or undecided.
        parity: Metrics of both, and every changed rank.
        kept: The reference's best answers that stay; None with too few to choose from.
        deltas: Every metric's difference with its interval.
        judgements: Every limit held against its metric.
        checks: Sessions' own scores beside the kernel's.
        levels: Comparison and differences of each level alone.
        changed: The worst :data:`LOOKED_UP` changed queries with what was retrieved for them;
            ``parity.changed`` has all.
        folds: Number of folds and the mean metrics of both; None without.
        attribution: What each component costs; None where it wasn't asked for.
        localizations: Per graph, the first layer that is wrong; empty where it wasn't asked for.
        facts: Time, memory, cache, machine.
    """

    names: tuple[str, str]
    dataset: CaptionDataset
    settings: ParitySettings
    verdict: Verdict
    parity: Parity
    kept: Kept | None
    deltas: Mapping[str, Delta]
    judgements: tuple[Judgement, ...]
    checks: tuple[ScorerCheck, ...]
    levels: tuple[tuple[Parity, Mapping[str, Delta]], ...]
    changed: tuple[ChangedQuery, ...]
    folds: tuple[int, Mapping[str, float], Mapping[str, float]] | None
    attribution: Attribution | None
    localizations: tuple[Localization, ...]
    facts: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether recall is shown to keep the budget."""
        return self.verdict is Verdict.passed
