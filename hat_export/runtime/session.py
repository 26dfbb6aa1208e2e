"""The three verbs that every backend offers: encode images, encode texts, score."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32, Int64

from hat_export.base.closing import Closing
from hat_export.data.preprocess import ImageLike, ImagePreprocessor
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.score.alignment import ScoreFeatures
from hat_export.score.features import ImageFeatures, ReducedImages, TextFeatures
from hat_export.score.projection import Projections
from hat_export.spec import ModelSpec


class Session(Closing, ABC):
    """A model that is ready to run.

    Args:
        spec: The architecture.
        tokenizer: Captions to word pieces.
        projections: From stage outputs to features at levels 1 and 2.
        backend: Name of the backend, for reports.
        threads: Threads that the backend may use.

    Attributes:
        projections: Those given: read, checked and hashed once, when the session is opened, which
            owns them. An index is opened with them and owns them from then on.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: CaptionTokenizer,
        projections: Projections,
        backend: str,
        threads: int,
    ) -> None:
        self.spec = spec
        self.tokenizer = tokenizer
        self.projections = projections
        self.preprocess = ImagePreprocessor.from_spec(spec)
        self.backend = backend
        self.threads = threads
        self._process = os.getpid()

    @property
    def survives_fork(self) -> bool:
        """Whether it works in a process that was forked after it was opened."""
        return False

    def encode_images(
        self, images: Float32[np.ndarray, "images 3 height width"] | Sequence[ImageLike]
    ) -> ImageFeatures:
        """Region features of images.

        Args:
            images: Preprocessed pixel values float32 [images, 3, H, W], or PIL images and paths.

        Returns:
            Per level, float32 [images, regions, d].

        Raises:
            InputError: on a wrong dtype or shape, or an unreadable image.
        """
        self._check_process()
        pixels = self._pixels(images)
        if not len(pixels):
            return ImageFeatures(
                tuple(
                    np.zeros((0, regions, self.spec.dim), np.float32)
                    for regions in self.spec.level_regions
                )
            )
        return ImageFeatures(self._encode_images(pixels))

    def reduce_images(
        self, images: Float32[np.ndarray, "images 3 height width"] | Sequence[ImageLike]
    ) -> ReducedImages:
        """What a compact index keeps of images; see :mod:`hat_export.index.images`.

        Args:
            images: As for :meth:`encode_images`, at least one.

        Returns:
            Stage outputs at levels 1 and 2, features at level 3.

        Raises:
            InputError: as :meth:`encode_images`, or if there is no image.
        """
        self._check_process()
        pixels = self._pixels(images)
        if not len(pixels):
            raise InputError("no images to reduce; expected at least one")
        return ReducedImages(self._reduce_images(pixels))

    def encode_texts(
        self,
        texts: Int64[np.ndarray, "captions words"] | Sequence[str],
        attention_mask: Int64[np.ndarray, "captions words"] | None = None,
    ) -> TextFeatures:
        """Word features of captions.

        Args:
            texts: Word-piece ids int64 [captions, words] padded with 0, or plain strings.
            attention_mask: int64 [captions, words], 1 on the first words of each row and 0 on the
                padding after them; needed with ids, not allowed with strings.

        Returns:
            Per level, float32 [captions, words, d], with true lengths.

        Raises:
            InputError: on a wrong dtype or shape, or an id outside of the vocabulary.
        """
        self._check_process()
        if isinstance(texts, str):
            raise InputError("expected a list of captions, got one string; put it into a list")
        if isinstance(texts, np.ndarray):
            if attention_mask is None:
                raise InputError("word-piece ids need an attention_mask of the same shape")
            ids, mask = texts, attention_mask
        else:
            if attention_mask is not None:
                raise InputError("attention_mask goes with word-piece ids, not with strings")
            ids, mask = self.tokenizer.encode(texts)
        self._check_texts(ids, mask)
        lengths = mask.sum(1)
        if not len(ids):
            empty = np.zeros((0, 1, self.spec.dim), np.float32)
            return TextFeatures((empty, empty, empty), lengths)
        levels = self._encode_texts(np.ascontiguousarray(ids), np.ascontiguousarray(mask))
        return TextFeatures(levels, lengths)

    def score(
        self, images: ImageFeatures, texts: TextFeatures
    ) -> Float32[np.ndarray, "images captions"]:
        """Alignment score of every image with every caption, summed over the levels.

        Args:
            images: From :meth:`encode_images`.
            texts: From :meth:`encode_texts`.

        Returns:
            float32 [images, captions]; higher is better.

        Raises:
            InputError: if the features are not of this model's width.
        """
        self._check_process()
        for what, levels in (("image", images.levels), ("text", texts.levels)):
            if levels[0].shape[2] != self.spec.dim:
                raise InputError(
                    f"{what} features are {levels[0].shape[2]} wide; "
                    f"this model's are {self.spec.dim}"
                )
        return self._score(images, texts)

    def scorers(self) -> Mapping[str, ScoreFeatures]:
        """Every way in which this session can score features, by name; all should agree."""
        return {"own score": self.score}

    def parts(self, graph: str) -> Mapping[str, float]:
        """How long the parts of the latest call of a verb took, where the backend can tell.

        Args:
            graph: What the call ran: ``image``, ``text`` or ``alignment``.

        Returns:
            Seconds by name, in order; empty where they aren't known.
        """
        return {}

    @property
    def scores_reduced(self) -> bool:
        """Whether scores may be taken from the reduced form, by the native kernel."""
        return False

    @abstractmethod
    def _encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features of a non-empty, checked batch."""

    @abstractmethod
    def _reduce_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """Stage outputs at levels 1 and 2 and features at level 3 of a non-empty, checked batch."""

    @abstractmethod
    def _encode_texts(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        """Features of a non-empty, checked batch."""

    @abstractmethod
    def _score(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        """Scores of checked features."""

    def _check_process(self) -> None:
        """Refuse to wait for threads that a fork has left behind: the call would never return.

        Raises:
            BackendUnavailableError: with the remedy.
        """
        if os.getpid() != self._process and not self.survives_fork:
            raise BackendUnavailableError(
                f"this {self.backend} session was opened before its process was forked, and its "
                "threads stayed behind: open it in the new process, or start processes with "
                "multiprocessing's 'spawn' method"
            )

    def _pixels(self, images: np.ndarray | Sequence[ImageLike]) -> np.ndarray:
        pixels = images if isinstance(images, np.ndarray) else self.preprocess(images)
        side = self.spec.image_size
        if pixels.dtype != np.float32 or pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise InputError(
                f"pixel values are {pixels.dtype} {list(pixels.shape)}; "
                f"expected float32 [images, 3, {side}, {side}]"
            )
        return np.ascontiguousarray(pixels)

    def _check_texts(self, ids: np.ndarray, mask: np.ndarray) -> None:
        for name, array in (("input_ids", ids), ("attention_mask", mask)):
            if array.dtype != np.int64 or array.ndim != 2 or array.shape != ids.shape:
                raise InputError(
                    f"{name} is {array.dtype} {list(array.shape)}; expected int64 [captions, words]"
                )
        if not len(ids):
            return
        words = ids.shape[1]
        if not 1 <= words <= self.spec.max_words:
            raise InputError(
                f"captions are {words} words wide; this model takes 1 to {self.spec.max_words}"
            )
        lengths = mask.sum(1)
        if (mask != (np.arange(words)[None] < lengths[:, None])).any() or lengths.min() < 1:
            raise InputError(
                "attention_mask must be 1 on the first words of each row, at least one, then 0"
            )
        if ids.min() < 0 or ids.max() >= self.spec.vocab_size:
            raise InputError(f"a word-piece id is outside of 0 .. {self.spec.vocab_size - 1}")
