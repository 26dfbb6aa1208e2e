"""The work of a timed case, by its component and size."""

from __future__ import annotations

import re

from hat_export.benchmark.roofline.bound import Work, image_work, score_work, search_work, text_work
from hat_export.spec import ModelSpec

#: Backends whose arithmetic is the CPU's in float32, which the bound is measured for.
CPU_BACKENDS = ("torch", "onnxruntime")


def work_of(
    component: str, size: str, spec: ModelSpec, words: int, caption_words: int
) -> Work | None:
    """What a case cannot leave out; None for preprocessing, which has no products.

    Args:
        component: As in :data:`hat_export.benchmark.latency.cases.COMPONENTS`.
        size: As in :class:`hat_export.benchmark.latency.cases.Case`.
        spec: The architecture.
        words: Word pieces of the captions that are encoded and scored.
        caption_words: Word pieces of the caption that is searched for.
    """
    numbers = [int(text) for text in re.findall(r"\d+", size)]
    if component == "images":
        return image_work(spec, numbers[0])
    if component == "texts":
        return text_work(spec, numbers[0], words)
    if component == "scores":
        return score_work(spec, numbers[0], numbers[1], words)
    if component == "end to end":
        return search_work(spec, numbers[1], caption_words)
    return None
