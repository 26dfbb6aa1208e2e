"""One engine from one ONNX graph, with the builder's log in a file and its progress told."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from hat_export.base.files import write_bytes
from hat_export.base.progress import Progress
from hat_export.bundle.bundle import TensorSpec
from hat_export.bundle.engines import Profile, shape_range, target_names
from hat_export.errors import BackendUnavailableError, EngineError
from hat_export.runtime.trt_library import TensorRT, find_gpu
from hat_export.tensorrt.alignment_network import PluginRequest, fill_network
from hat_export.tensorrt.fusion import EngineLayer, layers_in_log, layers_of_engine
from hat_export.tensorrt.request import FIRST_DEFAULT_TARGET

#: Severities of a logger, by the names that both libraries use.
WORST = ("INTERNAL_ERROR", "ERROR")


@dataclass(frozen=True)
class EngineRequest:
    """What an engine shall be.

    Attributes:
        graph: The ONNX file; its types are what the engine computes in.
        inputs: The graph's inputs.
        profiles: Sizes that it shall take.
        targets: Compute capabilities; empty for the present GPU.
        tf32: Whether float32 products may round their inputs to TF32.
        plugin: The alignment plugin that is built in place of the graph; ``inputs`` are its own.
    """

    graph: Path
    inputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...]
    targets: tuple[int, ...]
    tf32: bool
    plugin: PluginRequest | None = None


@dataclass(frozen=True)
class BuiltEngine:
    """What a build gave.

    Attributes:
        layers: The engine's kernels.
        device: GPU on which it was built; empty where there was none.
        targets: Compute capabilities that it is for.
        warnings: The builder's warnings, each with how often it came.
        seconds: How long parsing and building took.
    """

    layers: tuple[EngineLayer, ...]
    device: str
    targets: tuple[int, ...]
    warnings: Mapping[str, int]
    seconds: float


def build_engine(
    library: TensorRT,
    request: EngineRequest,
    engine: Path,
    log: Path,
    timing_cache: Path | None,
    progress: Progress,
    what: str,
) -> BuiltEngine:
    """Build an engine.

    Args:
        library: What builds it.
        request: What shall be built.
        engine: Where the engine goes.
        log: Where the builder's log goes, every line of it; kept if the build fails.
        timing_cache: File of measured kernels that is used and added to, for libraries that
            measure; None for none.
        progress: Told the percent of the build that is done.
        what: What to call it there.

    Raises:
        EngineError: if the graph can't be read or built; with the builder's reason.
        BackendUnavailableError: if the library needs a GPU and there is none.
        KeyboardInterrupt: if interrupted; the builder is stopped in order.
    """
    trt = library.module
    started = time.monotonic()
    progress.count(what, 0, 100)
    with log.open("w", encoding="utf-8") as file:
        listener = _Listener(file, lambda percent: progress.count(what, percent, 100))
        logger, monitor = _logger(trt, listener), _monitor(trt, listener)
        try:
            builder = trt.Builder(logger)
        except (RuntimeError, TypeError):  # pybind's "factory function returned nullptr"
            raise BackendUnavailableError(
                f"{library} can't build here ({listener.reason('no GPU')}); build where a GPU is, "
                "or with --runtime tensorrt-rtx"
            ) from None
        network = _network(trt, builder)
        if request.plugin is None:
            _parse(library, network, logger, request.graph, listener, log)
            _allow_decomposition(trt, network)
        else:
            fill_network(library, network, request.plugin, _kernel_target(request.targets))
        config = builder.create_builder_config()
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = monitor
        if not request.tf32:
            config.clear_flag(trt.BuilderFlag.TF32)
        for profile in request.profiles:
            shaped = builder.create_optimization_profile()
            for tensor in request.inputs:
                shaped.set_shape(tensor.name, *shape_range(tensor.shape, profile))
            config.add_optimization_profile(shaped)
        _choose_targets(trt, config, request.targets)
        timing = _open_timing_cache(library, config, timing_cache)
        plan = builder.build_serialized_network(network, config)
        listener.stop_if_interrupted()
        if plan is None:
            raise EngineError(
                f"{request.graph}: {library} built no engine for "
                f"{target_names(request.targets) or 'this GPU'}: "
                f"{listener.reason('no reason given')}; its log is {log}"
            )
        if timing is not None and timing_cache is not None:
            _save_timing_cache(timing, timing_cache)
        engine.write_bytes(memoryview(plan))
        progress.count(what, 100, 100)
        gpu = find_gpu()
        return BuiltEngine(
            layers=_layers(trt, logger, plan, listener) if gpu else listener.layers(),
            device=gpu.name if gpu else "",
            targets=request.targets or ((gpu.capability,) if gpu else ()),
            warnings=dict(listener.warnings),
            seconds=time.monotonic() - started,
        )


@dataclass
class _Phase:
    """A phase of the builder under way."""

    name: str
    steps: int
    done: int = 0


class _Listener:
    """Takes what the builder says, from whatever thread; never raises into the builder."""

    def __init__(self, file: TextIO, proceeds: Callable[[int], None]) -> None:
        self.warnings: Counter[str] = Counter()
        self._file = file
        self._proceeds = proceeds
        self._errors: list[str] = []
        self._layer_lists: list[str] = []
        self._phases: list[_Phase] = []
        self._told = 0
        self._interrupted: BaseException | None = None
        self._lock = threading.Lock()

    def log(self, severity: str, message: str) -> None:
        """One message."""
        try:
            with self._lock:
                self._file.write(f"[{severity}] {message}\n")
                if severity in WORST:
                    self._errors.append(message)
                elif severity == "WARNING":
                    self.warnings[_without_source(message)] += 1
                elif message.startswith("Layers:"):
                    self._layer_lists.append(message)
        except BaseException as error:  # a full disk, Ctrl-C: told after the build
            self._interrupted = self._interrupted or error

    def begin(self, name: str, steps: int) -> None:
        """A phase begins, within the one that began last and hasn't ended."""
        self._phases.append(_Phase(name, max(1, steps)))

    def proceed(self, name: str, step: int) -> bool:
        """A step of a phase is done; False asks the builder to stop."""
        try:
            for phase in self._phases:
                if phase.name == name:
                    phase.done = step + 1
            percent = int(100 * self._share())
            # The share falls where a phase turns out to have more parts than it announced.
            if percent > self._told:
                self._told = percent
                self._proceeds(percent)
        except BaseException as error:  # raised into the builder it would end the process
            self._interrupted = self._interrupted or error
        return self._interrupted is None

    def end(self, name: str) -> None:
        """A phase ends, with all that is within it."""
        names = [phase.name for phase in self._phases]
        if name in names:
            del self._phases[names.index(name) :]

    def _share(self) -> float:
        """Share of the whole: a phase is one step of the phase around it."""
        share, weight = 0.0, 1.0
        for phase in self._phases:
            share += weight * min(1.0, phase.done / phase.steps)
            weight /= phase.steps
        return min(1.0, share)

    def stop_if_interrupted(self) -> None:
        """Raise what came up while the builder ran."""
        if self._interrupted is not None:
            raise self._interrupted

    def reason(self, default: str) -> str:
        """The first error that the library told, without its place in the library's source."""
        return _without_source(self._errors[0]) if self._errors else default

    def layers(self) -> tuple[EngineLayer, ...]:
        """The layers that were logged."""
        return layers_in_log(self._layer_lists)


def _without_source(message: str) -> str:
    """A message without "ModelImporter.cpp:1071: " before it."""
    first, separator, rest = message.partition(": ")
    return rest if separator and ".cpp:" in first else message


def _logger(trt: Any, listener: _Listener) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Passes everything on."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            """One message."""
            listener.log(severity.name, message)

    return Logger()


def _monitor(trt: Any, listener: _Listener) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes everything on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """A phase begins."""
            listener.begin(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """A step is done; False stops the build."""
            return listener.proceed(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            """A phase ends."""
            listener.end(phase_name)

    return Monitor()


def _network(trt: Any, builder: Any) -> Any:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    # Where the flag is gone every network is strongly typed.
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _parse(
    library: TensorRT, network: Any, logger: Any, graph: Path, listener: _Listener, log: Path
) -> None:
    parser = library.module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        first = parser.get_error(0) if parser.num_errors else None
        reason = f"{first.desc()} (node {first.node_name()!r})" if first else "no reason given"
        listener.stop_if_interrupted()
        raise EngineError(f"{graph}: {library} can't read the graph: {reason}; its log is {log}")


def _kernel_target(targets: Sequence[int]) -> int:
    """The compute capability that the plugin's kernel is compiled for.

    Raises:
        BackendUnavailableError: if it is that of the present GPU, and there is none.
    """
    if len(targets) == 1:
        return targets[0]
    if targets:
        # PTX for sm_80 runs on all later ones; that for sm_90 and newer uses what is theirs alone.
        return FIRST_DEFAULT_TARGET
    gpu = find_gpu()
    if gpu is None:
        raise BackendUnavailableError("the alignment plugin is compiled for a GPU: there is none")
    return gpu.capability


def _allow_decomposition(trt: Any, network: Any) -> None:
    """Let an attention that no fused kernel fits be taken apart instead of failing the build.

    What became of each is counted afterwards, layer by layer.
    """
    kind = getattr(trt.LayerType, "ATTENTION_OUTPUT", None)  # TensorRT 10.14 and newer
    for index in range(network.num_layers if kind is not None else 0):
        layer = network.get_layer(index)
        if layer.type == kind:
            # The bindings give every layer as an ILayer; this is how they are told its real kind.
            layer.__class__ = trt.IAttentionOutputLayer
            layer.attention.decomposable = True


def _choose_targets(trt: Any, config: Any, targets: Sequence[int]) -> None:
    """Tell the builder what the engine shall run on."""
    if hasattr(config, "set_compute_capability"):
        kinds = [getattr(trt.ComputeCapability, f"SM{target}") for target in targets]
        config.num_compute_capabilities = max(1, len(kinds))
        for index, kind in enumerate(kinds or [trt.ComputeCapability.CURRENT]):
            config.set_compute_capability(kind, index)
    elif len(targets) > 1:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS


def _layers(trt: Any, logger: Any, plan: Any, listener: _Listener) -> tuple[EngineLayer, ...]:
    """Layers of the loaded engine; those in the log where it can't be loaded on this GPU."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    if engine is None:
        return listener.layers()
    return layers_of_engine(engine, trt.LayerInformationFormat.JSON)


def _open_timing_cache(library: TensorRT, config: Any, path: Path | None) -> Any:
    """The cache of measured kernels; None where kernels aren't measured when building."""
    if path is None or library.finishes_on_device:
        return None
    content = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(content)
    # A cache of another version or device is no error: everything is measured again.
    if not config.set_timing_cache(cache, ignore_mismatch=False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _save_timing_cache(cache: Any, path: Path) -> None:
    write_bytes(path, memoryview(cache.serialize()))
