"""What a request asks for, and how a batch of requests is answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hat_export.benchmark.latency.cases import make_gallery
from hat_export.runtime.self_test import noise_pixels
from hat_export.runtime.session import Session

#: Different samples that LoadGen draws from.
SAMPLES = 64
#: Words of made-up captions; all of them are in any vocabulary of English.
VOCABULARY = (
    "a the man woman child dog two young old red blue green sitting standing walking running on "
    "in near street table water field with of and house tree"
).split()


@dataclass(frozen=True)
class Work:
    """One kind of request.

    Attributes:
        name: One of :data:`WORKS`.
        included: What a request includes, for reports.
        samples: How many different ones there are.
        answer: Computes a batch of samples, given by number.
    """

    name: str
    included: str
    samples: int
    answer: Callable[[Sequence[int]], object]


def image_work(session: Session, images: int) -> Work:
    """Pixel values to region features; ``images`` is not used."""
    pixels = noise_pixels(session.spec, SAMPLES, seed=11)

    def answer(batch: Sequence[int]) -> object:
        return session.encode_images(pixels[list(batch)])

    return Work("images", "pixel values in memory to region features", SAMPLES, answer)


def text_work(session: Session, images: int) -> Work:
    """Captions to word features; ``images`` is not used."""
    captions = made_up_captions()

    def answer(batch: Sequence[int]) -> object:
        return session.encode_texts([captions[number] for number in batch])

    included = "a caption as text to word features, tokenization included"
    return Work("texts", included, len(captions), answer)


def search_work(session: Session, images: int) -> Work:
    """Captions to rankings of so many images, which were encoded before."""
    captions, regions = made_up_captions(), make_gallery(session, images)

    def answer(batch: Sequence[int]) -> object:
        texts = session.encode_texts([captions[number] for number in batch])
        return np.argsort(-session.score(regions, texts), axis=0, kind="stable")

    included = f"a caption as text to the ranking of {images} images that were encoded before"
    return Work("search", included, len(captions), answer)


def made_up_captions() -> list[str]:
    """Captions of 6 to 15 words, as long as Flickr30K's."""
    random = np.random.default_rng(12)
    lengths = random.integers(6, 16, SAMPLES)
    return [" ".join(random.choice(VOCABULARY, length)) for length in lengths]


#: Name -> what makes it from a session and the number of images that are searched.
WORKS: dict[str, Callable[[Session, int], Work]] = {
    "images": image_work,
    "texts": text_work,
    "search": search_work,
}
