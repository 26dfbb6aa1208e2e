"""How far a difference of recall can be trusted: paired bootstrap over images, McNemar's test.

The queries of a dataset are not independent: an image's captions all ask for that image, and are
found or lost together. What is drawn with replacement is therefore the image with everything that
belongs to it, its own query and its captions' ones, in both directions at once. A sum of recalls so
gets an interval of its own that knows how its parts go together.

Where few images change, a plain bootstrap believes too firmly in those it has seen: with three
changed images of a thousand its 95 % intervals hold the truth in 68 to 82 % of the cases. So every
sample counts one more losing and one more gaining image on average, of the size of those seen (the
idea of Agresti and Min, "Simple improved confidence intervals for comparing matched proportions",
2005). From eight changed images on, the intervals then hold the truth in 94 to 98 % of the cases,
below that in more, and where hundreds change it makes no difference. A candidate that changes no
rank, or none but between items that tie within float32's noise, gets no such image: that nothing
was lost is then no estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from hat_export.parity.comparison import DIRECTIONS, Parity
from hat_export.score.metrics import RECALL_AT, Ranks

#: Of all intervals.
CONFIDENCE = 0.95
#: The normal distribution's quantile that belongs to it.
Z = 1.959964

RESAMPLES = 10_000
#: Medians are sorted anew for every sample, which takes longer.
MEDIAN_RESAMPLES = 2_000
#: Fixed, so that a report can be reproduced to the last digit.
SEED = 20230808

#: Values that a block of resampled medians may take.
MEDIAN_BLOCK = 4 << 20

RECALLS = tuple(f"{side}_r{at}" for side in DIRECTIONS for at in RECALL_AT)
RANKS = tuple(f"{side}_{kind}_rank" for side in DIRECTIONS for kind in ("median", "mean"))


def label(metric: str) -> str:
    """A metric's name for readers: ``i2t_r1`` is ``i2t R@1``."""
    return metric.replace("_r1", " R@1").replace("_r5", " R@5").replace("_", " ")


@dataclass(frozen=True)
class Delta:
    """One metric on both sides, and its difference.

    Attributes:
        reference: The metric of the reference: percent, or a rank counted from 1.
        candidate: The metric of the candidate.
        low: Lower end of the interval of the difference candidate - reference.
        high: Upper end.
        spread: Standard deviation of an image's share in the difference, which has the standard
            error ``spread / sqrt(images)``; None where there is no such share (medians).
        lost: Queries found by the reference only; None for what isn't a recall.
        gained: Queries found by the candidate only.
        p_value: McNemar's exact test of lost against gained, two-sided. It takes queries as
            independent: where captions of one image change together, it is too small.
        by_ties: How much the candidate's recall would grow if every tie were won; 0 without ties.
    """

    reference: float
    candidate: float
    low: float
    high: float
    spread: float | None
    lost: int | None = None
    gained: int | None = None
    p_value: float | None = None
    by_ties: float | None = None

    @property
    def difference(self) -> float:
        """Candidate minus reference."""
        return self.candidate - self.reference

    def to_json(self) -> dict[str, Any]:
        """All numbers by name."""
        return {**asdict(self), "difference": self.difference}


def deltas(parity: Parity, seed: int = SEED) -> dict[str, Delta]:
    """Every metric with its difference and interval.

    Args:
        parity: The comparison.
        seed: Of the resampling.

    Returns:
        :data:`RECALLS`, ``rsum`` and :data:`RANKS`, by name.
    """
    random = np.random.default_rng(seed)
    images = parity.images
    imagine = not all(item.tie for item in parity.changed)
    clusters = {"i2t": np.arange(images), "t2i": parity.owners}
    sides = {
        side: (getattr(parity.reference, side), getattr(parity.candidate, side))
        for side in DIRECTIONS
    }
    changes: dict[str, np.ndarray] = {}
    sizes: dict[str, np.ndarray] = {}
    for side, (before, after) in sides.items():
        size = np.bincount(clusters[side], minlength=images)
        moved = {
            f"{side}_r{at}": (after.worst < at).astype(np.int64) - (before.worst < at)
            for at in RECALL_AT
        }
        moved[f"{side}_mean_rank"] = after.worst - before.worst
        for name, values in moved.items():
            changes[name] = _per_image(values, clusters[side], images)
            sizes[name] = size
    drawn = resampled(np.stack([*changes.values()]), np.stack([*sizes.values()]), random)
    samples = dict(zip(changes, drawn.T, strict=True))
    samples["rsum"] = np.sum([samples[name] for name in RECALLS], axis=0)
    shares = {name: change / sizes[name].mean() for name, change in changes.items()}
    shares["rsum"] = np.sum([shares[name] for name in RECALLS], axis=0)
    spread = {name: float(np.std(share)) for name, share in shares.items()}
    if imagine:
        for name, share in shares.items():
            step = typical(share, 1 / sizes[name].mean() if name in sizes else 1.0)
            samples[name] = samples[name] + imagined(step / images, random, len(drawn))
            spread[name] = math.hypot(spread[name], step * math.sqrt(2 / images))
    found: dict[str, Delta] = {}
    for side, (before, after) in sides.items():
        for at in RECALL_AT:
            name = f"{side}_r{at}"
            lost = int(((before.worst < at) & (after.worst >= at)).sum())
            gained = int(((before.worst >= at) & (after.worst < at)).sum())
            found[name] = Delta(
                before.recall(at),
                after.recall(at),
                *_interval(100 * samples[name]),
                100 * spread[name],
                lost,
                gained,
                mcnemar(lost, gained),
                after.recall_if_ties_won(at) - after.recall(at),
            )
    found["rsum"] = Delta(
        parity.reference.rsum,
        parity.candidate.rsum,
        *_interval(100 * samples["rsum"]),
        100 * spread["rsum"],
        by_ties=sum(found[name].by_ties or 0.0 for name in RECALLS),
    )
    for side, (before, after) in sides.items():
        low, high = _interval(_medians(before, after, clusters[side], images, random))
        found[f"{side}_median_rank"] = Delta(before.median, after.median, low, high, None)
        name = f"{side}_mean_rank"
        found[name] = Delta(before.mean, after.mean, *_interval(samples[name]), spread[name])
    return found


def resampled(
    changes: Int64[np.ndarray, "metrics images"],
    sizes: Int64[np.ndarray, "metrics images"],
    random: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "resamples metrics"]:
    """Means over bootstrap samples of images.

    Images that contribute the same are drawn together: how many of a sample come from each such
    group is multinomial, exactly as if they were drawn one by one. Most images contribute nothing,
    so that ten thousand samples take milliseconds.

    Args:
        changes: An image's sum over its queries.
        sizes: How many queries that are.
        random: Source of the draws.
        resamples: Number of samples.

    Returns:
        Per sample and metric, sum of the drawn changes over sum of the drawn sizes.
    """
    images = changes.shape[1]
    rows, counts = np.unique(np.concatenate([changes, sizes]), axis=1, return_counts=True)
    drawn = random.multinomial(images, counts / images, size=resamples).astype(np.float64)
    sums = drawn @ rows.T.astype(np.float64)
    metrics = len(changes)
    return sums[:, :metrics] / sums[:, metrics:]


def typical(shares: Float64[np.ndarray, " images"], single: float) -> float:
    """Size of what an image contributes that changes: root mean square of those seen.

    Args:
        shares: Per image.
        single: The contribution of a single query, for where nothing changed.
    """
    changed = shares[shares != 0]
    return math.sqrt(np.square(changed).mean()) if len(changed) else single


def imagined(
    size: float, random: np.random.Generator, resamples: int = RESAMPLES
) -> Float64[np.ndarray, " resamples"]:
    """What one more losing and one more gaining image, on average, do to resampled means.

    Args:
        size: What such an image does to the mean.
        random: Source of the draws.
        resamples: Number of samples.

    Returns:
        To be added to the means.
    """
    gained, lost = random.poisson(1.0, (2, resamples))
    noise: np.ndarray = (gained - lost) * size
    return noise


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test: how likely is a split of the changed queries at least as uneven?

    Args:
        lost: Queries right before and wrong after.
        gained: Queries wrong before and right after.

    Returns:
        Two-sided p-value of a fair coin; 1 where nothing changed.
    """
    total, fewer = lost + gained, min(lost, gained)
    # Whole numbers throughout: 2^total leaves float's range at 1024 changed queries.
    tail = ways = 1
    for count in range(fewer):
        ways = ways * (total - count) // (count + 1)
        tail += ways
    return min(1.0, 2 * tail / (1 << total))


def images_needed(spread: float, margin: float) -> int | None:
    """Images after which the interval's half width is the margin, at the spread seen here.

    Args:
        spread: :attr:`Delta.spread`.
        margin: Distance between the observed difference and the limit.

    Returns:
        ``(z spread / margin)^2``; None if there is no margin at all.
    """
    return math.ceil((Z * spread / margin) ** 2) if margin > 0 else None


def to_json(found: Mapping[str, Delta]) -> dict[str, Any]:
    """All metrics as plain JSON values."""
    return {name: delta.to_json() for name, delta in found.items()}


def _per_image(values: np.ndarray, cluster: np.ndarray, images: int) -> np.ndarray:
    summed = np.zeros(images, np.int64)
    np.add.at(summed, cluster, values)
    return summed


def _interval(samples: np.ndarray) -> tuple[float, float]:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, (outside, 1 - outside))
    return float(low), float(high)


def _medians(
    before: Ranks,
    after: Ranks,
    cluster: np.ndarray,
    images: int,
    random: np.random.Generator,
) -> np.ndarray:
    """Differences of the median rank over samples of images."""
    if np.array_equal(before.worst, after.worst):
        return np.zeros(1)
    queries = len(cluster)
    orders = [np.argsort(ranks.worst, kind="stable") for ranks in (before, after)]
    differences = []
    block = max(1, MEDIAN_BLOCK // queries)
    for start in range(0, MEDIAN_RESAMPLES, block):
        count = min(block, MEDIAN_RESAMPLES - start)
        drawn = random.multinomial(images, np.full(images, 1 / images), size=count)
        medians = []
        for ranks, order in zip((before, after), orders, strict=True):
            passed = drawn[:, cluster[order]].cumsum(1)
            # Between two middle ranks the lower one, nearly as Ranks.median takes it.
            middle = (passed < (passed[:, -1:] + 1) // 2).sum(1)
            medians.append(ranks.worst[order][middle])
        differences.append(medians[1] - medians[0])
    return np.concatenate(differences).astype(np.float64)
