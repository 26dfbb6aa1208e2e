"""What runs inside Triton's Python backend: the models of a repository, on hat-export's sessions.

The server imports these through the ``model.py`` of each model, gives them requests that its
dynamic batcher has put together, and takes one response per request.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.bundle.bundle import Bundle
from hat_export.errors import HatError
from hat_export.index.images import ImageIndex
from hat_export.runtime.backends.opening import open_bundle
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.serving.names import (
    IMAGE_LEVELS,
    SEARCH_CANDIDATES,
    SEARCH_TOP_K,
    TEXT,
    TEXT_LEVELS,
)

Arrays = dict[str, np.ndarray]


class _ServedModel(ABC):
    """A model as Triton's Python backend expects it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open what the model needs; called by the server, once per instance."""
        config = json.loads(args["model_config"])
        self.parameters: dict[str, str] = {
            name: value["string_value"] for name, value in config["parameters"].items()
        }
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Open what the model needs."""

    @abstractmethod
    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Outputs of each request.

        Raises:
            HatError: if the inputs can't be right.
        """

    @abstractmethod
    def finalize(self) -> None:
        """Release what is held; called by the server."""

    #: Names of the inputs; those that a request may leave out come in ``optional``.
    inputs: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests; called by the server.

        A request that can't be answered gets its own error: it was put together with the others by
        the server, and must not spoil theirs.
        """
        read = [self._read(request) for request in requests]
        try:
            return [_response(outputs) for outputs in self.run(read)]
        except HatError as error:
            if len(requests) == 1:
                return [_error(error)]
            return [response for request in requests for response in self.execute([request])]

    def _read(self, request: Any) -> Arrays:
        import triton_python_backend_utils as triton

        arrays = {}
        for name in (*self.inputs, *self.optional):
            tensor = triton.get_input_tensor_by_name(request, name)
            if tensor is not None:
                arrays[name] = tensor.as_numpy()
        return arrays


class _SessionModel(_ServedModel):
    """A model that is one verb of a session."""

    def open(self) -> None:
        """Open the bundle, checked."""
        threads = int(self.parameters["threads"])
        self.session = open_bundle(self.parameters["bundle"], threads=threads)

    def finalize(self) -> None:
        """Close the session."""
        self.session.close()


class ImageModel(_SessionModel):
    """``pixel_values`` [images, 3, H, W] to features at three levels."""

    inputs = ("pixel_values",)

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Encode the images of all requests together."""
        pixels = np.concatenate([request["pixel_values"] for request in requests])
        levels = self.session.encode_images(pixels).levels
        sizes = [len(request["pixel_values"]) for request in requests]
        return _split(dict(zip(IMAGE_LEVELS, levels, strict=True)), sizes)


class TextModel(_SessionModel):
    """``input_ids`` and ``attention_mask`` [captions, words] to features at three levels."""

    inputs = ("input_ids", "attention_mask")

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Encode the captions of all requests together; the server batches those of one width."""
        ids = np.concatenate([request["input_ids"] for request in requests])
        mask = np.concatenate([request["attention_mask"] for request in requests])
        levels = self.session.encode_texts(ids, mask).levels
        sizes = [len(request["input_ids"]) for request in requests]
        return _split(dict(zip(TEXT_LEVELS, levels, strict=True)), sizes)


class AlignmentModel(_SessionModel):
    """Features of images and captions to ``scores`` [images, captions]."""

    inputs = (*IMAGE_LEVELS, *TEXT_LEVELS, "attention_mask")

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Score each request for itself: its images with its captions."""
        answers = []
        for request in requests:
            images = ImageFeatures(tuple(request[name] for name in IMAGE_LEVELS))
            lengths = request["attention_mask"].sum(1)
            texts = TextFeatures(tuple(request[name] for name in TEXT_LEVELS), lengths)
            answers.append({"scores": self.session.score(images, texts)})
        return answers


class SearchModel(_ServedModel):
    """``query`` [queries, 1] to ``ids`` and ``scores`` [queries, top_k], by the text model.

    Business logic scripting: captions are encoded by the repository's text model, whatever its
    backend, so that searches and other requests are batched together; the index is searched here.
    """

    inputs = ("query",)
    optional = ("top_k",)

    def open(self) -> None:
        """Open the index; of the bundle only tokenizer and projections are used."""
        # The self-test is the text model's affair.
        bundle = Bundle.read(self.parameters["bundle"])
        threads = int(self.parameters["threads"])
        self.session = open_bundle(bundle.path, threads=threads, verify=False)
        self.index = ImageIndex.open(Path(self.parameters["index"]), self.session.projections)

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """Encode the queries of all requests together, and search."""
        session = self.session
        texts = [
            row.decode("utf-8", "replace")
            for request in requests
            for row in request["query"].reshape(-1)
        ]
        ids, mask = session.tokenizer.encode(texts)
        features = self._encode(ids, mask)
        answers, start = [], 0
        for request in requests:
            count = len(request["query"])
            top_k = int(request["top_k"].reshape(-1)[0]) if "top_k" in request else SEARCH_TOP_K
            hits = self.index.search(
                features[start : start + count],
                top_k,
                "pooled",
                max(SEARCH_CANDIDATES, top_k),
                session.threads,
            )
            start += count
            names = np.array([[name.encode() for name in one.ids] for one in hits], np.object_)
            scores = np.stack([one.scores for one in hits])
            answers.append({"ids": names, "scores": scores})
        return answers

    def finalize(self) -> None:
        """Close index and session."""
        self.session.close()
        self.index.close()

    def _encode(self, ids: np.ndarray, mask: np.ndarray) -> TextFeatures:
        import triton_python_backend_utils as triton

        parts = []
        limit = int(self.parameters["text_batch"])
        for start in range(0, len(ids), limit):
            request = triton.InferenceRequest(
                model_name=TEXT,
                requested_output_names=list(TEXT_LEVELS),
                inputs=[
                    triton.Tensor("input_ids", ids[start : start + limit]),
                    triton.Tensor("attention_mask", mask[start : start + limit]),
                ],
            )
            response = request.exec()
            if response.has_error():
                raise HatError(f"the text model failed: {response.error().message()}")
            levels = tuple(
                triton.get_output_tensor_by_name(response, name).as_numpy() for name in TEXT_LEVELS
            )
            parts.append(TextFeatures(levels, mask[start : start + limit].sum(1)))
        return TextFeatures.concatenate(parts)


def _split(outputs: Arrays, sizes: Sequence[int]) -> list[Arrays]:
    places = np.cumsum(sizes)[:-1]
    parts = {name: np.split(values, places) for name, values in outputs.items()}
    return [{name: parts[name][n] for name in outputs} for n in range(len(sizes))]


def _response(outputs: Arrays) -> Any:
    import triton_python_backend_utils as triton

    tensors = [triton.Tensor(name, np.ascontiguousarray(v)) for name, v in outputs.items()]
    return triton.InferenceResponse(output_tensors=tensors)


def _error(error: HatError) -> Any:
    import triton_python_backend_utils as triton

    return triton.InferenceResponse(error=triton.TritonError(str(error)))
