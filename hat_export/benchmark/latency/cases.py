"""What is timed: the components of retrieval on one session, as calls without arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.runtime.session import Session
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.spec import ModelSpec

#: Component -> what a call includes, in the order of reports.
COMPONENTS = {
    "preprocessing": "JPEG files in the page cache to pixel values: decoding, resizing, cropping, "
    "normalising",
    "images": "pixel values in memory to region features in memory, transfers to and from a device "
    "included",
    "texts": "word pieces in memory to word features in memory, transfers included",
    "scores": "region and word features in memory to scores in memory",
    "end to end": "a caption as text to the ranking of all images: tokenization, text encoder, "
    "scores with every image, sorting; the images were encoded before",
}

#: Component -> the graphs that a call runs, for the times of its parts.
GRAPHS_OF = {
    "images": ("image",),
    "texts": ("text",),
    "scores": ("alignment",),
    "end to end": ("text", "alignment"),
}

#: Pictures as a photo site delivers them: Flickr30K's most frequent size.
PICTURE_SIZE = (500, 375)
#: Encoded pictures that a gallery repeats: the time of a score does not depend on its values.
GALLERY_PICTURES = 4
CAPTION = "a man in a blue shirt is standing on a ladder cleaning a window"


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        target: Whose: name of a session.
        component: One of :data:`COMPONENTS`.
        size: Images, captions x words, or images x captions, as text.
        threads: Threads of the session.
        items: Images, captions or pairs that a call handles, for the throughput.
        run: The call.
        parts: Tells how long parts of the latest call took, by name; of nothing by default.
    """

    target: str
    component: str
    size: str
    threads: int
    items: int
    run: Callable[[], object]
    parts: Callable[[], Mapping[str, float]] = dict

    @property
    def key(self) -> tuple[str, str, int]:
        """What is comparable between targets: component, size, threads."""
        return self.component, self.size, self.threads


@dataclass(frozen=True)
class Sizes:
    """At which sizes the components are timed; an empty tuple leaves a component out.

    Attributes:
        images: Images per call of preprocessing and the image encoder.
        texts: Captions per call of the text encoder.
        words: Width of these captions in word pieces.
        scores: Images and captions per call of the score.
        galleries: Images that one caption is ranked against, end to end.
    """

    images: tuple[int, ...]
    texts: tuple[int, ...]
    words: int
    scores: tuple[tuple[int, int], ...]
    galleries: tuple[int, ...]


def write_pictures(folder: Path, count: int) -> list[Path]:
    """JPEG files of made-up photographs: blocks of colour with grain, quality 90."""
    paths = []
    for number in range(count):
        random = np.random.default_rng(number)
        width, height = PICTURE_SIZE
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        picture = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        grain = random.integers(-12, 13, picture.shape, np.int16)
        path = folder / f"{number}.jpg"
        pixels = np.clip(picture + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        paths.append(path)
    return paths


def cases_of(name: str, session: Session, sizes: Sizes, pictures: Sequence[Path]) -> list[Case]:
    """The components of a session, one case per component and size.

    Args:
        name: What to call the target.
        session: Any backend.
        sizes: What to make cases of.
        pictures: Image files, as many as the largest of ``sizes.images``.
    """
    spec = session.spec

    def case(component: str, size: str, items: int, run: Callable[[], object]) -> Case:
        parts = partial(_parts, session, GRAPHS_OF.get(component, ()))
        return Case(name, component, size, session.threads, items, run, parts)

    cases = []
    for count in sizes.images:
        files = list(pictures[:count])
        cases.append(case("preprocessing", str(count), count, partial(session.preprocess, files)))
    for count in sizes.images:
        pixels = noise_pixels(spec, count, seed=count)
        cases.append(case("images", str(count), count, partial(session.encode_images, pixels)))
    for count in sizes.texts:
        ids, mask = whole_captions(spec, count, sizes.words)
        run = partial(session.encode_texts, ids, mask)
        cases.append(case("texts", f"{count} x {sizes.words}", count, run))
    for images, captions in sizes.scores:
        regions = make_gallery(session, images)
        texts = session.encode_texts(*whole_captions(spec, captions, sizes.words))
        score = partial(session.score, regions, texts)
        cases.append(case("scores", f"{images} x {captions}", images * captions, score))
    for images in sizes.galleries:
        ranking = partial(rank_images, session, make_gallery(session, images), CAPTION)
        cases.append(case("end to end", f"1 caption, {images} images", 1, ranking))
    return cases


def _parts(session: Session, graphs: Sequence[str]) -> dict[str, float]:
    """Seconds of the parts of the latest calls of some graphs, added up."""
    found: dict[str, float] = {}
    for graph in graphs:
        for part, seconds in session.parts(graph).items():
            found[part] = found.get(part, 0.0) + seconds
    return found


def whole_captions(spec: ModelSpec, captions: int, words: int) -> tuple[np.ndarray, np.ndarray]:
    """Word pieces and mask of captions that are all of one length; int64 [captions, words]."""
    ids, _ = noise_captions(spec, captions, words, seed=captions)
    return ids, np.ones_like(ids)


def make_gallery(session: Session, images: int) -> ImageFeatures:
    """Region features of so many images: a few encoded pictures over and over."""
    few = session.encode_images(noise_pixels(session.spec, min(images, GALLERY_PICTURES), seed=7))
    places = np.arange(images) % len(few)
    return ImageFeatures(tuple(level[places] for level in few.levels))


def rank_images(session: Session, images: ImageFeatures, caption: str) -> np.ndarray:
    """Positions of all images, the best for a caption first; int64 [images]."""
    texts: TextFeatures = session.encode_texts([caption])
    return np.argsort(-session.score(images, texts)[:, 0], kind="stable")
