"""Which component lost the recall: the reference with one part of the candidate at a time.

Features are on the disk, so that a swap costs scoring and no encoding: the candidate's images with
the reference's captions tell what the candidate's image encoder does to recall, all else being the
reference's. Level scores are kept apart, so that every level of every swap comes for a sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from hat_export.parity.comparison import compare_scores
from hat_export.parity.embeddings import EncodedDataset
from hat_export.parity.scores import LevelScores, Scorer, check_fit, summed
from hat_export.parity.statistics import RECALLS, Delta, deltas
from hat_export.spec import LEVELS

#: Scores captions of one model with images of one, by somebody's scorer; the last is its name.
Score = Callable[[EncodedDataset, EncodedDataset, Scorer, str], LevelScores]


class Component(StrEnum):
    """What can be swapped."""

    image = "image encoder"
    text = "text encoder"
    scorer = "scorer"
    levels = "everything"


@dataclass(frozen=True)
class Swap:
    """The reference with one part of the candidate.

    Attributes:
        component: What was swapped.
        level: At which level alone; None for all three.
        same: Whether both models have the same there, so that nothing can differ.
        deltas: Recalls and rsum against the reference, as
            :func:`hat_export.parity.statistics.deltas` gives them.
        changed: Ranks that changed beyond ties.
        ties: Ranks that changed between items that tie within float32's noise.
        score_difference: Largest absolute difference of a score.
    """

    component: Component
    level: int | None
    same: bool
    deltas: Mapping[str, Delta]
    changed: int
    ties: int
    score_difference: float

    @property
    def name(self) -> str:
        """For reports."""
        if self.level is None:
            return self.component.value
        return f"{self.component.value}, level {self.level} alone"

    @property
    def cost(self) -> float:
        """Points of rsum that are lost; negative for a gain."""
        return -self.deltas["rsum"].difference

    def to_json(self) -> dict[str, Any]:
        """All numbers by name."""
        return {
            "component": self.component.value,
            "level": self.level,
            "same": self.same,
            "changed": self.changed,
            "ties": self.ties,
            "score_difference": self.score_difference,
            "deltas": {name: asdict(self.deltas[name]) for name in (*RECALLS, "rsum")},
        }


@dataclass(frozen=True)
class Attribution:
    """What each component costs.

    Attributes:
        swaps: All three components, each as a whole and per level, then each level as a whole.
    """

    swaps: tuple[Swap, ...]

    @property
    def culprit(self) -> Swap | None:
        """The component that costs most rsum, or where none costs any, moves most ranks.

        None if no component changes a rank beyond ties.
        """
        whole = [
            swap
            for swap in self.swaps
            if swap.level is None and swap.changed and swap.component is not Component.levels
        ]
        return max(whole, key=lambda swap: (max(swap.cost, 0.0), swap.changed), default=None)

    def sentence(self) -> str:
        """Who it was, in one sentence."""
        swap = self.culprit
        if swap is None:
            return "No component changes a rank beyond ties."
        delta = swap.deltas["rsum"]
        losing = swap.cost > 0
        worst = max(
            (item for item in self.swaps if item.component is swap.component and item.level),
            key=lambda item: item.cost if losing else item.changed,
        )
        others = [
            f"{item.component.value} {item.deltas['rsum'].difference:+.2f}"
            for item in self.swaps
            if item.level is None and item.component not in (swap.component, Component.levels)
        ]
        moved = "costs most" if losing else f"moves most ranks ({swap.changed:,} beyond ties)"
        return (
            f"The {swap.component.value} {moved}: {delta.difference:+.2f} points of rsum "
            f"(interval {delta.low:+.2f} to {delta.high:+.2f}), most at level {worst.level} "
            f"({worst.deltas['rsum'].difference:+.2f} by itself); {', '.join(others)}."
        )

    def to_json(self) -> dict[str, Any]:
        """All swaps, and who it was."""
        culprit = self.culprit
        return {
            "culprit": culprit.component.value if culprit else None,
            "swaps": [swap.to_json() for swap in self.swaps],
        }


def attribute(
    reference: EncodedDataset,
    candidate: EncodedDataset,
    scores: tuple[LevelScores, LevelScores],
    owners: Sequence[int],
    folder: Path,
    score: Score,
) -> Attribution:
    """Swap every component.

    Args:
        reference: Features of the reference.
        candidate: Features of the candidate.
        scores: Of both, each by itself.
        owners: For every caption, the index of its image.
        folder: For the sums of levels; its content can be deleted afterwards.
        score: Scores features, see :data:`Score`.

    Returns:
        Every swap with what it costs.

    Raises:
        InputError: if the models' features don't fit together.
    """
    check_fit(candidate.spec, reference.spec)
    own = Scorer.of(reference.spec)
    others = Scorer.of(candidate.spec)
    made: dict[Component, LevelScores | None] = {
        Component.image: None,
        Component.text: None,
        Component.scorer: None,
    }
    if candidate.keys.image != reference.keys.image:
        made[Component.image] = score(candidate, reference, own, "image encoder swapped")
    if candidate.keys.text != reference.keys.text:
        made[Component.text] = score(reference, candidate, own, "text encoder swapped")
    if others != own:
        made[Component.scorer] = score(reference, reference, others, "scorer swapped")
    swaps = [
        _swap(component, level, scores[0], swapped, owners, folder)
        for component, swapped in (*made.items(), (Component.levels, scores[1]))
        for level in (None, *range(1, LEVELS + 1))
    ]
    return Attribution(tuple(swaps))


def _swap(
    component: Component,
    level: int | None,
    reference: LevelScores,
    swapped: LevelScores | None,
    owners: Sequence[int],
    folder: Path,
) -> Swap:
    if swapped is None:
        total, same = reference.total, True
    elif level is None:
        total, same = swapped.total, False
    else:
        levels = list(reference.levels)
        levels[level - 1] = swapped.levels[level - 1]
        total, same = summed(levels, folder / "swapped.npy"), False
    parity = compare_scores(reference.total, total, owners)
    changed = [item for item in parity.changed if not item.tie]
    ties = len(parity.changed) - len(changed)
    return Swap(component, level, same, deltas(parity), len(changed), ties, parity.score_difference)
