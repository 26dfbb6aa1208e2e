"""The queries that changed: what each side retrieves for them, with scores and margins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hat_export.data.dataset import CaptionDataset
from hat_export.parity.comparison import ChangedRank, Scores

#: Answers shown per side.
SHOWN = 3


@dataclass(frozen=True)
class Answer:
    """One retrieved item.

    Attributes:
        item: Number of the caption (i2t) or image (t2i).
        score: Its score.
        right: Whether it is a right answer.
    """

    item: int
    score: float
    right: bool


@dataclass(frozen=True)
class ChangedQuery:
    """A query that changed, with what was retrieved for it.

    Attributes:
        change: Ranks, scores and margin.
        reference: The reference's first answers.
        candidate: The candidate's first answers.
    """

    change: ChangedRank
    reference: tuple[Answer, ...]
    candidate: tuple[Answer, ...]

    def to_json(self, dataset: CaptionDataset) -> dict[str, Any]:
        """The change with names and texts, and what was retrieved."""
        change = self.change
        found = change_to_json(change, dataset)
        for side, answers in (("reference", self.reference), ("candidate", self.candidate)):
            found[f"retrieved_by_{side}"] = [
                asdict(answer) | {"text": answer_text(change, answer.item, dataset)}
                for answer in answers
            ]
        return found


def look_up(
    changed: Sequence[ChangedRank], reference: Scores, candidate: Scores, owners: Sequence[int]
) -> tuple[ChangedQuery, ...]:
    """What both sides retrieve for some queries.

    Args:
        changed: The queries.
        reference: Scores of the reference.
        candidate: Scores of the candidate.
        owners: For every caption, the index of its image.
    """
    owner = np.asarray(owners)
    found = []
    for change in changed:
        sides = []
        for scores in (reference, candidate):
            i2t = change.direction == "i2t"
            row = np.asarray(scores[change.query] if i2t else scores[:, change.query])
            best = np.argsort(-row, kind="stable")[:SHOWN]
            sides.append(
                tuple(
                    Answer(
                        int(item),
                        float(row[item]),
                        bool(owner[item] == change.query if i2t else owner[change.query] == item),
                    )
                    for item in best
                )
            )
        found.append(ChangedQuery(change, sides[0], sides[1]))
    return tuple(found)


def change_to_json(change: ChangedRank, dataset: CaptionDataset) -> dict[str, Any]:
    """A change with its query's name or text."""
    return asdict(change) | {"tie": change.tie, "text": query_text(change, dataset)}


def query_text(change: ChangedRank, dataset: CaptionDataset) -> str:
    """The query as text: a picture's name or a caption."""
    if change.direction == "i2t":
        return dataset.entries[change.query].name
    return dataset.captions[change.query]


def answer_text(change: ChangedRank, item: int, dataset: CaptionDataset) -> str:
    """An answer as text."""
    return dataset.captions[item] if change.direction == "i2t" else dataset.entries[item].name
