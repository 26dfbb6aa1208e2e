"""Inputs of the encoder graphs on which an export looks at activations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from hat_export.data.dataset import CaptionDataset
from hat_export.data.preprocess import ImageLike, ImagePreprocessor
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.export.observe import Feed
from hat_export.runtime.self_test import noise_captions, noise_pixels
from hat_export.spec import ModelSpec

IMAGE_BATCH = 4
CAPTION_BATCH = 32


def noise_feeds(spec: ModelSpec) -> Mapping[str, Iterable[Feed]]:
    """Made-up inputs: coarse pictures with grain, and random word pieces."""
    ids, mask = noise_captions(spec, CAPTION_BATCH, spec.max_words, seed=12)
    pictures = ({"pixel_values": noise_pixels(spec, IMAGE_BATCH, seed)} for seed in (11, 13))
    return {"image": pictures, "text": [{"input_ids": ids, "attention_mask": mask}]}


def dataset_feeds(
    dataset: CaptionDataset, spec: ModelSpec, tokenizer: CaptionTokenizer
) -> Mapping[str, Iterable[Feed]]:
    """Real inputs, preprocessed as for inference; a batch at a time, so that memory is bounded.

    Args:
        dataset: Images and captions; all of them are used.
        spec: The architecture.
        tokenizer: The model's tokenizer.

    Returns:
        For the ``image`` and the ``text`` graph, feeds that can be gone through once.
    """
    return {
        "image": _images(dataset, ImagePreprocessor.from_spec(spec)),
        "text": _captions(dataset.captions, tokenizer),
    }


def _images(dataset: CaptionDataset, preprocess: ImagePreprocessor) -> Iterator[Feed]:
    batch: list[ImageLike] = []
    for image in dataset.images():
        batch.append(image)
        if len(batch) == IMAGE_BATCH:
            yield {"pixel_values": preprocess(batch)}
            batch = []
    if batch:
        yield {"pixel_values": preprocess(batch)}


def _captions(captions: Sequence[str], tokenizer: CaptionTokenizer) -> Iterator[Feed]:
    for start in range(0, len(captions), CAPTION_BATCH):
        ids, mask = tokenizer.encode(captions[start : start + CAPTION_BATCH])
        yield {"input_ids": ids, "attention_mask": mask}
