"""The worst of the changed queries as pictures."""

from __future__ import annotations

from collections.abc import Sequence

from hat_export.data.dataset import CaptionDataset
from hat_export.parity.changed_queries import Answer, ChangedQuery, answer_text, query_text
from hat_export.report.report import Card, Gallery, Item, Picture
from hat_export.report.thumbnail import make_thumbnail

#: Longer side of a thumbnail in pixels; shown at half of that, sharp on dense screens.
SIDE = 192


def make_gallery(changed: Sequence[ChangedQuery], total: int, dataset: CaptionDataset) -> Gallery:
    """Cards of the worst changed queries.

    Args:
        changed: What to show, worst first.
        total: How many changed in all.
        dataset: Where the pictures and captions come from.
    """
    cards = []
    for item in changed:
        change = item.change
        i2t = change.direction == "i2t"
        tie = ", a tie within float32's noise" if change.tie else ""
        title = (
            f"{'Image' if i2t else 'Caption'} {change.query}: rank {change.before:,} became "
            f"{change.after:,}{tie}"
        )
        note = f"score {change.score_before:.4f} became {change.score_after:.4f}"
        picture = _thumbnail(dataset, change.query) if i2t else None
        query = Item(query_text(change, dataset), note, picture)
        answers = tuple(
            (
                f"Retrieved by the {side}",
                tuple(_answer(item, answer, dataset) for answer in found),
            )
            for side, found in (("reference", item.reference), ("candidate", item.candidate))
        )
        cards.append(Card(title, query, answers))
    note = (
        f"{len(cards)} of {total:,}, worst first. Beside each query the first answers of both "
        "sides with their scores."
    )
    return Gallery("The worst changed queries", note, tuple(cards))


def _answer(item: ChangedQuery, answer: Answer, dataset: CaptionDataset) -> Item:
    picture = None
    if item.change.direction == "t2i":
        picture = _thumbnail(dataset, answer.item)
    text = answer_text(item.change, answer.item, dataset)
    return Item(text, f"{answer.score:.4f}", picture, answer.right)


def _thumbnail(dataset: CaptionDataset, image: int) -> Picture:
    name = dataset.entries[image].name
    return make_thumbnail(dataset.store.open(name), name, SIDE)
