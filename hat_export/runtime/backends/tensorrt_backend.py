"""Bundles with engines on TensorRT or TensorRT-RTX, on an NVIDIA GPU."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hat_export.base.files import write_bytes
from hat_export.bundle.bundle import (
    GRAPHS,
    IMAGE_OUTPUTS,
    PROJECTIONS,
    REDUCED_OUTPUTS,
    TEXT_OUTPUTS,
    TOKENIZER,
    Bundle,
)
from hat_export.bundle.engines import EngineInfo, target_names
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import BackendUnavailableError, EngineError, InputError, OutputError
from hat_export.runtime.backends.alignment_inputs import pack_captions, plugin_inputs
from hat_export.runtime.backends.cuda import Cuda, open_cuda
from hat_export.runtime.backends.engine_runner import PARTS, EngineRunner
from hat_export.runtime.session import Session
from hat_export.runtime.trt_library import Gpu, TensorRT, find_gpu, load_library
from hat_export.score.alignment import feature_blocks
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.score.projection import read_projections

#: Most execution contexts of one engine: each has memory for its own activations.
MOST_CONTEXTS = 4
#: An engine of full TensorRT for several targets runs on all from here on (hardware compatibility).
FIRST_PORTABLE = 80


class TensorRtSession(Session):
    """A bundle's three engines on a GPU; safe to share between threads.

    Args:
        bundle: The bundle, already checked.
        threads: Calls that may run at the same time; at most :data:`MOST_CONTEXTS` do.

    Raises:
        InputError: if the bundle holds no engines.
        EngineError: if an engine doesn't fit the library, the GPU or its graph; with the command
            that builds it again.
        BackendUnavailableError: if there is no GPU, driver or library.
    """

    def __init__(self, bundle: Bundle, threads: int) -> None:
        spec = bundle.manifest.spec
        engines = bundle.manifest.engines
        missing = [name for name in GRAPHS if name not in engines]
        if missing:
            raise InputError(
                f"{bundle.path}: holds no {missing[0]} engine; build engines with: "
                f"hat-export trt {shlex.quote(str(bundle.path))} OUT"
            )
        tokenizer = CaptionTokenizer.from_file(bundle.file(TOKENIZER), spec.max_words)
        projections = read_projections(bundle.arrays(PROJECTIONS))
        super().__init__(spec, tokenizer, projections, "tensorrt", threads)
        self._bundle = bundle
        library = load_library(engines["image"].library)
        cuda = open_cuda()
        gpu = find_gpu()
        if gpu is None:
            raise BackendUnavailableError("backend tensorrt: CUDA doesn't describe its device")
        for name in GRAPHS:
            check_engine(bundle, name, library, gpu)
        self._messages: list[str] = []
        self._logger = _make_logger(library.module, self._messages)
        self._runtime = library.module.Runtime(self._logger)
        self._caches: dict[Path, Any] = {}
        self._runners: dict[str, EngineRunner] = {}
        self._parts: dict[str, dict[str, float]] = {}
        try:
            for name in GRAPHS:
                self._runners[name] = self._load(name, library, cuda, gpu)
        except BaseException:
            self.close()
            raise

    def _load(self, name: str, library: TensorRT, cuda: Cuda, gpu: Gpu) -> EngineRunner:
        info = self._bundle.manifest.engines[name]
        path = self._bundle.file(info.file)
        engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            reason = self._messages[-1] if self._messages else "no reason given"
            raise EngineError(f"{path}: {library} can't load it: {reason}; {rebuild(self._bundle)}")
        make_context = engine.create_execution_context
        if library.finishes_on_device:
            config = self._device_config(name, engine, library, gpu)

            def make_context() -> Any:
                return engine.create_execution_context(config)

        graph = self._bundle.manifest.graphs[name]
        if info.form == "plugin":
            graph = replace(graph, inputs=plugin_inputs(self.spec))
        contexts = max(1, min(self.threads, MOST_CONTEXTS))
        capture = not library.finishes_on_device
        return EngineRunner(cuda, engine, make_context, graph, info, contexts, capture)

    def _device_config(self, name: str, engine: Any, library: TensorRT, gpu: Gpu) -> Any:
        """TensorRT-RTX compiles for the device when contexts are made: kept for the next start."""
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = library.module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        path = runtime_cache_path(self._bundle, name, library, gpu)
        if path.is_file():
            # One of another version or driver is refused and replaced: it only costs the time.
            cache.deserialize(path.read_bytes())
        config.set_runtime_cache(cache)
        self._caches[path] = cache
        return config

    def _encode_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._in_batches("image", "images", {"pixel_values": pixels}, IMAGE_OUTPUTS)

    def _reduce_images(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        return self._in_batches("image", "images", {"pixel_values": pixels}, REDUCED_OUTPUTS)

    def _encode_texts(self, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
        words = ids.shape[1]
        feed = self._with_words("text", {"input_ids": ids, "attention_mask": mask})
        levels = self._in_batches("text", "captions", feed, TEXT_OUTPUTS)
        return tuple(level[:, :words] for level in levels)

    def _score(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        runs: list[dict[str, float]] = []
        scores = np.empty((len(images), len(texts)), np.float32)
        for block in feature_blocks(images, texts):
            found = self._score_block(runs, block.images, block.texts)
            scores[block.tile.rows, block.tile.columns] = found
        self._parts["alignment"] = _added(runs)
        return scores

    def _score_block(
        self, runs: list[dict[str, float]], images: ImageFeatures, texts: TextFeatures
    ) -> np.ndarray:
        runner = self._runners["alignment"]
        feed = dict(zip(TEXT_OUTPUTS, texts.levels, strict=True)) | {"attention_mask": texts.mask}
        feed = self._with_words("alignment", feed)
        captions, words = feed["attention_mask"].shape
        profile = runner.profile_for({"images": len(images), "captions": captions, "words": words})
        parts = [
            (self._alignment_inputs(few.arrays), few.real)
            for few in runner.batches(profile["captions"], feed)
        ]
        rows = []
        regions = dict(zip(IMAGE_OUTPUTS, images.levels, strict=True))
        for some in runner.batches(profile["images"], regions):
            columns = []
            for few, real in parts:
                (scores,), seconds = runner.run({**some.arrays, **few}, ["scores"])
                runs.append(seconds)
                columns.append(scores[: some.real, :real])
            rows.append(np.concatenate(columns, axis=1))
        return np.concatenate(rows)

    def _alignment_inputs(self, feed: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Captions as the alignment engine takes them."""
        plugin = self._bundle.manifest.engines["alignment"].form == "plugin"
        return pack_captions(feed) if plugin else feed

    def _in_batches(
        self, name: str, dim: str, feed: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[np.ndarray, ...]:
        """Run an encoder on as many rows at a time as its engine takes."""
        runner = self._runners[name]
        profile = runner.profile_for(runner.sizes(feed))
        found, runs = [], []
        for batch in runner.batches(profile[dim], feed):
            results, seconds = runner.run(batch.arrays, outputs)
            found.append([result[: batch.real] for result in results])
            runs.append(seconds)
        self._parts[name] = _added(runs)
        return tuple(np.concatenate(pieces) for pieces in zip(*found, strict=True))

    def _with_words(self, name: str, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Captions padded to the shortest width that the engine takes."""
        words = feed["attention_mask"].shape[1]
        missing = self._runners[name].least("words", words) - words
        return {
            key: np.pad(array, [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)])
            for key, array in feed.items()
        }

    def parts(self, graph: str) -> Mapping[str, float]:
        """Seconds on the device of the latest call: copies and compute apart.

        A call of many images or captions is several runs of an engine, and theirs are added up.
        """
        return self._parts.get(graph, {})

    def close(self) -> None:
        """Free the GPU's memory, and keep what TensorRT-RTX has compiled."""
        for path, cache in self._caches.items():
            _keep(path, cache)
        self._caches.clear()
        for runner in self._runners.values():
            runner.close()
        self._runners.clear()


def _added(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {part: sum(seconds[part] for seconds in runs) for part in PARTS}


def check_engine(bundle: Bundle, name: str, library: TensorRT, gpu: Gpu) -> None:
    """Refuse an engine that was built for something else, before TensorRT does in its own words.

    Raises:
        EngineError: with the command that builds it again.
    """
    info = bundle.manifest.engines[name]
    where = bundle.path / info.file
    if info.library != library.name or info.version != library.version:
        raise EngineError(
            f"{where}: built by {info.library} {info.version}, and this is {library}; "
            f"{rebuild(bundle)}"
        )
    portable = info.library == "tensorrt" and len(info.targets) > 1
    fits = gpu.capability in info.targets or (portable and gpu.capability >= FIRST_PORTABLE)
    if not fits:
        raise EngineError(
            f"{where}: built for {target_names(info.targets)}, and {gpu.name} is "
            f"sm_{gpu.capability}; {rebuild(bundle)}"
        )
    if info.graph_sha256 != bundle.graph_sha256(name):
        raise EngineError(
            f"{where}: built from another graph than {bundle.manifest.graphs[name].file}; "
            f"{rebuild(bundle)}"
        )


def rebuild(bundle: Bundle) -> str:
    """The command that builds a bundle's engines again, for a message."""
    info: EngineInfo = next(iter(bundle.manifest.engines.values()))
    path = str(bundle.path)
    words = ["hat-export", "trt", path, f"{path}-rebuilt"]
    words += ["--precision", bundle.manifest.precision]
    if any(engine.form == "plugin" for engine in bundle.manifest.engines.values()):
        words += ["--alignment", "plugin"]
    return f"build again with: {shlex.join(words)} --runtime {info.library}"


def runtime_cache_path(bundle: Bundle, name: str, library: TensorRT, gpu: Gpu) -> Path:
    """Where compiled kernels are kept: beside the bundle, which itself never changes."""
    device = f"{library.version}-sm_{gpu.capability}"
    return bundle.path.parent / f"{bundle.path.name}.{name}.{device}.runtime-cache"


def _keep(path: Path, cache: Any) -> None:
    """Write a runtime cache; where the folder is read-only the next start compiles again."""
    with suppress(OutputError):
        write_bytes(path, bytes(cache.serialize()))


def _make_logger(trt: Any, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps errors for our own message."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """One message."""
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                messages.append(message)

    return Logger()


def open_session(bundle: Bundle, threads: int) -> TensorRtSession:
    """Entry point of the backend table."""
    return TensorRtSession(bundle, threads)
