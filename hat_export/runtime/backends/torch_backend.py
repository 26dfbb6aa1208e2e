"""The PyTorch reference behind the same verbs as the bundles' sessions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.model.alignment import alignment_scores
from hat_export.model.checkpoint import load_hat
from hat_export.model.hat import HAT
from hat_export.runtime.session import Session
from hat_export.score.alignment import feature_blocks
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.score.projection import Projection, Projections
from hat_export.spec import LEVEL_SUFFIXES, REDUCED_LEVELS, ModelSpec


class TorchSession(Session):
    """A HAT in PyTorch, float32, eager.

    Args:
        model: In eval mode; its weights stay as they are while the session is open.
        tokenizer: Its tokenizer.
        threads: Intra-operator threads; a setting of the whole process.

    Attributes:
        model: The module.
    """

    def __init__(self, model: HAT, tokenizer: CaptionTokenizer, threads: int) -> None:
        super().__init__(model.spec, tokenizer, projections_of(model), "torch", threads)
        self.model = model

    def weights_sha256(self, component: str) -> str:
        """Hash of one encoder's weights and projections.

        Args:
            component: ``image`` or ``text``.
        """
        encoder = {"image": "vit_model.", "text": "text_transformer."}[component]
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            if name.startswith((encoder, f"cross_modal_{component}_")):
                digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            return _arrays(self.model.encode_images(torch.from_numpy(pixels)))

    def _reduce_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            first, second, third = self.model.image_stages(torch.from_numpy(pixels))
            projection = cast(torch.nn.Linear, self.model.cross_modal_image_transform)
            return _arrays((first, second, projection(third)))

    def _encode_texts(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        torch.set_num_threads(self.threads)
        with torch.inference_mode():
            levels = self.model.encode_texts(torch.from_numpy(ids), torch.from_numpy(mask))
            return _arrays(levels)

    def _score(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        torch.set_num_threads(self.threads)
        scores = np.empty((len(images), len(texts)), np.float32)
        with torch.inference_mode():
            for block in feature_blocks(images, texts):
                scores[block.tile.rows, block.tile.columns] = alignment_scores(
                    [_tensor(level) for level in block.images.levels],
                    [_tensor(level) for level in block.texts.levels],
                    torch.from_numpy(block.texts.mask).bool(),
                    self.spec.softmax_lambda,
                    self.spec.direction,
                ).numpy()
        return scores


def open_checkpoint(
    path: Path, spec: ModelSpec | None, vocabulary: Path | None, threads: int
) -> TorchSession:
    """A session on a checkpoint.

    Args:
        path: Checkpoint file or folder.
        spec: Architecture, where the checkpoint alone doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside the checkpoint.
        threads: Intra-operator threads.

    Raises:
        CheckpointError: if it can't be read or holds another model.
        SpecError: if the architecture can't be known.
    """
    loaded = load_hat(path, spec, vocabulary)
    tokenizer = CaptionTokenizer.from_vocabulary(loaded.vocabulary, loaded.spec.max_words)
    return TorchSession(loaded.model, tokenizer, threads)


def projections_of(model: HAT) -> Projections:
    """A model's projections at levels 1 and 2, for a compact index."""
    first, second = (
        Projection(
            *(getattr(linear, name).detach().numpy() for name in ("weight", "bias")),
        )
        for linear in (
            getattr(model, f"cross_modal_image_transform{suffix}")
            for suffix in LEVEL_SUFFIXES[: len(REDUCED_LEVELS)]
        )
    )
    return Projections(first, second)


def _tensor(level: np.ndarray) -> torch.Tensor:
    # A view that runs backwards can't be a tensor.
    return torch.from_numpy(np.ascontiguousarray(level))


def _arrays(levels: Sequence[torch.Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(level.numpy() for level in levels)
