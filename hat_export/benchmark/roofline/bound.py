"""Bounds of timed calls, and what a share of the bound advises.

The roofline of Williams, Waterman and Patterson (2009): a call takes at least the time of its
arithmetic at the machine's speed, and at least the time of its bytes at the machine's bandwidth.
Arithmetic is counted product by product, each at the speed that the best library reaches at exactly
its size; bytes are the weights, inputs and outputs, each moved once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hat_export.benchmark.roofline.machine import Machine
from hat_export.benchmark.roofline.products import Product, image_products, text_products
from hat_export.spec import ModelSpec

FLOAT_BYTES = 4
#: From this share of the bound on a call is called good.
NEAR = 0.75
#: Calls whose bound is below this are so short that starting operators can outweigh their work.
SHORT_SECONDS = 2e-3


@dataclass(frozen=True)
class Work:
    """What a call cannot leave out.

    Attributes:
        products: Matrix products that are timed one by one.
        further_flops: Of products that are taken at the machine's peak.
        bytes: Weights, inputs and outputs.
    """

    products: Counter[Product]
    further_flops: float
    bytes: float

    @property
    def flops(self) -> float:
        """All floating point operations."""
        return self.further_flops + sum(p.flops * count for p, count in self.products.items())


def image_work(spec: ModelSpec, images: int) -> Work:
    """Of the image encoder."""
    products = image_products(spec, images)
    pixels = 3 * spec.image_size**2
    features = sum(spec.level_regions) * spec.dim
    return Work(products, 0.0, _weights(products) + FLOAT_BYTES * images * (pixels + features))


def text_work(spec: ModelSpec, captions: int, words: int) -> Work:
    """Of the text encoder, all captions of one length."""
    products = text_products(spec, captions, words)
    features = 3 * words * spec.dim
    embeddings = words * spec.text_dim
    moved = FLOAT_BYTES * captions * (features + embeddings)
    return Work(products, 0.0, _weights(products) + moved)


def score_work(spec: ModelSpec, images: int, captions: int, words: int) -> Work:
    """Of the score from features: every word with every region, at full width."""
    regions, texts = images * sum(spec.level_regions), captions * words
    moved = FLOAT_BYTES * (spec.dim * (regions + 3 * texts) + images * captions)
    return Work(Counter(), 2.0 * regions * texts * spec.dim, moved)


def search_work(spec: ModelSpec, images: int, words: int) -> Work:
    """Of ranking images for one caption: the text encoder and the score."""
    text, score = text_work(spec, 1, words), score_work(spec, images, 1, words)
    return Work(text.products, score.further_flops, text.bytes + score.bytes)


def _weights(products: Counter[Product]) -> float:
    return float(
        sum(FLOAT_BYTES * p.inner * p.columns * n for p, n in products.items() if p.batch == 1)
    )


@dataclass(frozen=True)
class Bound:
    """The least time of a call.

    Attributes:
        flops: Floating point operations of the products.
        bytes: Moved at least.
        compute_seconds: The products alone.
        memory_seconds: The bytes alone.
    """

    flops: float
    bytes: float
    compute_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.compute_seconds, self.memory_seconds)

    @property
    def by(self) -> str:
        """``compute`` or ``memory``."""
        return "compute" if self.compute_seconds >= self.memory_seconds else "memory"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "flops": self.flops,
            "bytes": self.bytes,
            "compute_seconds": self.compute_seconds,
            "memory_seconds": self.memory_seconds,
            "seconds": self.seconds,
            "by": self.by,
        }


def bound_of(work: Work, machine: Machine) -> Bound:
    """The bound of some work on a machine."""
    timed = sum(machine.products[product][0] * count for product, count in work.products.items())
    compute = timed + work.further_flops / machine.peak
    return Bound(work.flops, work.bytes, compute, work.bytes / machine.bandwidth)


def advice(component: str, seconds: float, limit: Mapping[str, Any]) -> str:
    """One sentence: what binds a call, and what to do about it.

    Args:
        component: What was timed.
        seconds: Its median.
        limit: From :meth:`Bound.to_json`.
    """
    share = limit["seconds"] / seconds
    if limit["by"] == "memory":
        if share >= NEAR:
            return "Bound by memory: only fewer bytes help, larger batches or narrower weights."
        return "Memory is its bound, but not yet the cause: profile its operators."
    if share >= NEAR:
        return "Bound by compute: only less work helps, a smaller model or lower precision."
    if limit["seconds"] < SHORT_SECONDS:
        return "Bound by launch: starting operators and threads outweighs the work; batch calls."
    if component in ("scores", "end to end"):
        return "Bound by compute beyond the products: softmax and norms, or one-thread parts."
    return "Bound by compute beyond the products: hat-bench profile names the operators."


def preprocessing_advice(one_picture: float, one_encoded: float | None) -> str:
    """What the time of preprocessing means beside the encoder's.

    Args:
        one_picture: Seconds to preprocess one picture, on one thread.
        one_encoded: Seconds to encode one, at the best batch; None if not measured.
    """
    if one_encoded is None:
        return "One thread; not compared, since the image encoder was not measured."
    share = one_picture / one_encoded
    if share > 1:
        return (
            f"Bound by one-thread preprocessing: {share:.1f} times the encoder's time; decode in "
            "several processes."
        )
    return f"One thread, {share:.0%} of the encoder's time: overlap it with encoding."
