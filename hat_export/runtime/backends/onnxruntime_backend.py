"""Bundles on ONNX Runtime, on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from hat_export.base.machine import cpu_features
from hat_export.bundle.bundle import (
    IMAGE_OUTPUTS,
    PROJECTIONS,
    REDUCED_OUTPUTS,
    TEXT_OUTPUTS,
    TOKENIZER,
    Bundle,
)
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import BackendUnavailableError, BundleError, InputError
from hat_export.kernels import operators
from hat_export.runtime.session import Session
from hat_export.score.alignment import ScoreFeatures, feature_blocks, score_with_kernel
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.score.projection import read_projections

#: Attention form of bundles that need this project's own operators.
PACKED_ATTENTION = "packed"

#: Microseconds that the threads of a session go on spinning for work. ONNX Runtime's own default
#: lasts tens of milliseconds: a bundle has two sessions, and while the image encoder's threads
#: spun, a caption at official size took 79 ms on two cores instead of 42. Without any spinning
#: short calls in succession pay for waking threads. Releases that don't know the entry ignore it.
SPIN_MICROSECONDS = 1000


def session_options(threads: int, own_operators: bool) -> onnxruntime.SessionOptions:
    """Options of every session on a CPU.

    Args:
        threads: Intra-operator threads.
        own_operators: Whether the graph may hold this project's operators.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if own_operators:
        options.register_custom_ops_library(str(operators.library_path()))
    return options


class OnnxRuntimeSession(Session):
    """A bundle's graphs in ONNX Runtime; safe to share between threads.

    Args:
        bundle: The bundle, already checked.
        threads: Intra-operator threads.

    Raises:
        BundleError: if ONNX Runtime refuses a graph.
        BackendUnavailableError: if it has no kernels for the bundle's precision.
    """

    backend_name = "onnxruntime"
    #: Precisions that it has kernels for. In fp16 the CPU provider computes most of a graph in
    #: float32 and rounds less often than a GPU.
    precisions: tuple[str, ...] = ("fp32", "fp16")

    def __init__(self, bundle: Bundle, threads: int) -> None:
        spec = bundle.manifest.spec
        tokenizer = CaptionTokenizer.from_file(bundle.file(TOKENIZER), spec.max_words)
        projections = read_projections(bundle.arrays(PROJECTIONS))
        super().__init__(spec, tokenizer, projections, self.backend_name, threads)
        if bundle.manifest.precision not in self.precisions:
            raise BackendUnavailableError(
                f"{bundle.path}: ONNX Runtime's CPU provider has no {bundle.manifest.precision} "
                "kernels; check its results with --backend emulation, and run it on a GPU"
            )
        check_cpu(bundle, cpu_features())
        self._bundle = bundle
        self._graphs = {name: self._load(name) for name in ("image", "text")}

    @property
    def survives_fork(self) -> bool:
        """True with one thread: ONNX Runtime has no others then."""
        return self.threads == 1

    def _options(self) -> onnxruntime.SessionOptions:
        packed = self._bundle.manifest.attention_form == PACKED_ATTENTION
        return session_options(self.threads, packed)

    def _load(self, name: str) -> onnxruntime.InferenceSession:
        path = self._bundle.graph_path(name)
        try:
            return onnxruntime.InferenceSession(
                self._model(path), self._options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the library's exceptions share no base but Exception
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise BundleError(f"{path}: ONNX Runtime can't load the graph ({line})") from None

    def _model(self, path: Path) -> str | bytes:
        """What is loaded: a path, so that external data is found and nothing is copied."""
        return str(path)

    def _graph(self, name: str) -> onnxruntime.InferenceSession:
        try:
            return self._graphs[name]
        except KeyError:
            raise InputError("this session is closed; open the bundle again") from None

    def _encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._run("image", IMAGE_OUTPUTS, {"pixel_values": pixels})

    def _reduce_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._run("image", REDUCED_OUTPUTS, {"pixel_values": pixels})

    def _encode_texts(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        feed = {"input_ids": ids, "attention_mask": mask}
        return self._run("text", TEXT_OUTPUTS, feed)

    def _score(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        return score_with_kernel(images, texts, self.spec, self.threads)

    @property
    def scores_reduced(self) -> bool:
        """True for i2t: words attend to full-width regions, which have no reduced form."""
        return self.spec.direction == "i2t"

    def score_with_graph(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        """Scores by the bundle's alignment graph, for comparison with the native kernel.

        Args:
            images: From :meth:`encode_images`.
            texts: From :meth:`encode_texts`.

        Returns:
            float32 [images, captions].
        """
        self._check_process()
        if "alignment" not in self._graphs:
            self._graphs["alignment"] = self._load("alignment")
        scores = np.empty((len(images), len(texts)), np.float32)
        for block in feature_blocks(images, texts):
            found = self._score_block(block.images, block.texts)
            scores[block.tile.rows, block.tile.columns] = found
        return scores

    def scorers(self) -> Mapping[str, ScoreFeatures]:
        """The native kernel on whole features, and the bundle's alignment graph."""
        return {"own score": self.score, "alignment graph": self.score_with_graph}

    def _score_block(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        feed = dict(zip(IMAGE_OUTPUTS, images.levels, strict=True))
        feed |= dict(zip(TEXT_OUTPUTS, texts.levels, strict=True))
        feed["attention_mask"] = texts.mask
        return self._run("alignment", ["scores"], feed)[0]

    def _run(
        self, name: str, outputs: list[str], feed: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, ...]:
        graph = self._graph(name)
        try:
            return tuple(graph.run(outputs, feed))
        except Exception as error:  # the library's exceptions share no base but Exception
            line = (str(error).splitlines() or [type(error).__name__])[0]
            path = self._bundle.graph_path(name)
            raise BundleError(f"{path}: ONNX Runtime can't run the graph ({line})") from None

    def close(self) -> None:
        """Release the graphs."""
        self._graphs.clear()


def check_cpu(bundle: Bundle, features: frozenset[str]) -> None:
    """Refuse a quantized bundle whose products this CPU would get wrong.

    Raises:
        BackendUnavailableError: if the CPU has none of the features that the bundle needs.
    """
    quantization = bundle.manifest.quantization
    if quantization is None or not quantization.requires:
        return
    if not features & set(quantization.requires):
        raise BackendUnavailableError(
            f"{bundle.path}: quantized for {quantization.target}, which needs one of "
            f"{', '.join(quantization.requires)}; this CPU has none, and its 16-bit sums of "
            "products would saturate in silence: quantize again with --target cpu-avx2"
        )


def open_session(bundle: Bundle, threads: int) -> OnnxRuntimeSession:
    """Entry point of the backend table."""
    return OnnxRuntimeSession(bundle, threads)
