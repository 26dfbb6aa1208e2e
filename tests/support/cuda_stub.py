"""CUDA and TensorRT in the host's memory: what a session calls, in what order, to what result.

Device memory is host memory, a stream runs at once, its clock knows a fixed time for each copy and
each run of an engine, and an engine is an ONNX graph in ONNX Runtime
that reads and writes the addresses it was given. Wrong shapes, forgotten copies and stale addresses
give wrong numbers or a crash here as they would on a GPU.
"""

# ruff: noqa: N802, N815 (names as CUDA has them)

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from hat_export.bundle.bundle import Bundle, list_files, write_manifest
from hat_export.bundle.engines import EngineInfo, Range
from hat_export.runtime.trt_library import Gpu

GPU = Gpu("Stub GPU", 89)
PROFILES = (
    {"images": Range(1, 1, 1), "captions": Range(1, 1, 1), "words": Range(3, 16, 32)},
    {"images": Range(2, 3, 4), "captions": Range(2, 3, 5), "words": Range(3, 16, 32)},
)

#: Microseconds that a copy to the device, a run of an engine and a copy back take.
COPY_UP, RUN, COPY_BACK = 1, 4, 2


class CudaStub:
    """``cuda.bindings.runtime``: every function gives an error code (0) and its results."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="up", cudaMemcpyDeviceToHost="down")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.now = 0
        self.recorded: dict[str, int] = {}
        self.memory: dict[int, Any] = {}
        self.handles: set[str] = set()
        self.capturing: list[Callable[[], None]] | None = None
        self.graphs: dict[str, list[Callable[[], None]]] = {}
        self._count = 0

    def _handle(self, kind: str) -> tuple[int, str]:
        self._count += 1
        self.handles.add(f"{kind} {self._count}")
        return 0, f"{kind} {self._count}"

    def _allocate(self, size: int) -> tuple[int, int]:
        block = (ctypes.c_byte * size)()
        address = ctypes.addressof(block)
        self.memory[address] = block
        return 0, address

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, 1

    def cudaGetErrorString(self, error: int) -> tuple[int, bytes]:
        return 0, b"made up"

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        return self._allocate(size)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:
        return self._allocate(size)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(
        self, target: int, source: int, count: int, kind: str, stream: str
    ) -> tuple[int]:
        self.calls.append(kind)
        self.now += COPY_UP if kind == "up" else COPY_BACK
        ctypes.memmove(target, source, count)
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, str]:
        return self._handle("stream")

    def cudaEventCreate(self) -> tuple[int, str]:
        return self._handle("event")

    def cudaEventRecord(self, event: str, stream: str) -> tuple[int]:
        self.recorded[event] = self.now
        return (0,)

    def cudaEventElapsedTime(self, start: str, end: str) -> tuple[int, float]:
        return 0, (self.recorded[end] - self.recorded[start]) / 1e3

    def cudaStreamSynchronize(self, stream: str) -> tuple[int]:
        self.calls.append("wait")
        return (0,)

    def cudaStreamBeginCapture(self, stream: str, mode: int) -> tuple[int]:
        self.capturing = []
        return (0,)

    def cudaStreamEndCapture(self, stream: str) -> tuple[int, str]:
        error, name = self._handle("graph")
        assert self.capturing is not None
        self.graphs[name], self.capturing = self.capturing, None
        return error, name

    def cudaGraphInstantiate(self, graph: str, flags: int) -> tuple[int, str]:
        error, name = self._handle("executable")
        self.graphs[name] = self.graphs[graph]
        return error, name

    def cudaGraphLaunch(self, executable: str, stream: str) -> tuple[int]:
        self.calls.append("launch graph")
        for action in self.graphs[executable]:
            self._work(action)
        return (0,)

    def _destroy(self, handle: str) -> tuple[int]:
        self.handles.remove(handle)
        return (0,)

    cudaGraphDestroy = cudaGraphExecDestroy = cudaEventDestroy = cudaStreamDestroy = _destroy

    def run(self, action: Callable[[], None]) -> None:
        """An engine's work: done at once, or kept while a graph is captured."""
        self.calls.append("execute")
        if self.capturing is None:
            self._work(action)
        else:
            self.capturing.append(action)

    def _work(self, action: Callable[[], None]) -> None:
        self.now += RUN
        action()


class _Context:
    def __init__(self, cuda: CudaStub, session: onnxruntime.InferenceSession) -> None:
        self._cuda = cuda
        self._session = session
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self.profiles: list[int] = []

    def set_optimization_profile_async(self, index: int, stream: str) -> bool:
        self.profiles.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(value for value in self._session.get_outputs() if value.name == name)
        known: dict[Any, int] = {}
        for entry in self._session.get_inputs():
            known |= dict(zip(entry.shape, self._shapes[entry.name], strict=True))
        return tuple(known.get(dim, dim) for dim in value.shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address in self._cuda.memory

    def execute_async_v3(self, stream: str) -> bool:
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def work() -> None:
            feed = {}
            for entry in self._session.get_inputs():
                whole = [name for name in ("int64", "int32") if name in entry.type]
                dtype = np.dtype(whole[0] if whole else "float32")
                count = int(np.prod(shapes[entry.name]))
                memory = (ctypes.c_byte * (count * dtype.itemsize)).from_address(
                    addresses[entry.name]
                )
                feed[entry.name] = np.frombuffer(memory, dtype).reshape(shapes[entry.name])
            for value, array in zip(
                self._session.get_outputs(), self._session.run(None, feed), strict=True
            ):
                data = np.ascontiguousarray(array)
                ctypes.memmove(addresses[value.name], data.ctypes.data, data.nbytes)

        self._cuda.run(work)
        return True


class _RuntimeCache:
    content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content + b"compiled"


class _Engine:
    def __init__(self, cuda: CudaStub, session: onnxruntime.InferenceSession) -> None:
        self._cuda = cuda
        self._session = session
        self.contexts: list[_Context] = []
        self.config = SimpleNamespace(
            create_runtime_cache=_RuntimeCache, set_runtime_cache=lambda cache: None
        )

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, config: Any = None) -> _Context:
        self.contexts.append(_Context(self._cuda, self._session))
        return self.contexts[-1]


def tensorrt_stub(
    cuda: CudaStub, bundle: Bundle, rtx: bool, instead: Mapping[str, Any] | None = None
) -> SimpleNamespace:
    """A module like ``tensorrt`` (or ``tensorrt_rtx``) whose engines are a bundle's graphs.

    Args:
        cuda: Where they run.
        bundle: A bundle whose engine files hold the name of their graph.
        rtx: Whether it has what only TensorRT-RTX has.
        instead: What runs in place of some graphs, with the interface of ONNX Runtime's session.
    """
    engines: dict[str, _Engine] = {}

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, content: bytes) -> _Engine | None:
            name = content.decode()
            if name not in bundle.manifest.graphs:
                self._logger.log(SimpleNamespace(name="ERROR"), "Magic tag does not match")
                return None
            path = Path(bundle.graph_path(name))
            session = (instead or {}).get(name) or onnxruntime.InferenceSession(
                path, providers=["CPUExecutionProvider"]
            )
            return engines.setdefault(name, _Engine(cuda, session))

    class ILogger:
        def __init__(self) -> None:
            pass

    module = SimpleNamespace(
        __version__="11.4.0", ILogger=ILogger, Runtime=Runtime, engines=engines
    )
    if rtx:
        module.IRuntimeCache = _RuntimeCache
        module.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph")
    return module


def with_engines(
    folder: Path, targets: tuple[int, ...] = (89,), library: str = "tensorrt"
) -> Bundle:
    """Turn a bundle into one whose engines the stub can load."""
    bundle = Bundle.read(folder)
    engines = {}
    for name, graph in bundle.manifest.graphs.items():
        (folder / f"{name}.engine").write_text(name)
        (folder / f"{name}.build.log").write_text("")
        dims = {dim for tensor in graph.inputs for dim in tensor.shape}
        engines[name] = EngineInfo(
            file=f"{name}.engine",
            log=f"{name}.build.log",
            library=library,
            version="11.4.0",
            targets=targets,
            device="",
            tf32=False,
            profiles=tuple({k: v for k, v in p.items() if k in dims} for p in PROFILES),
            attention_expected=0,
            attention_fused=0,
            attention_apart=(),
            graph_sha256=bundle.graph_sha256(name),
        )
    write_manifest(folder, replace(bundle.manifest, engines=engines, files=list_files(folder)))
    return Bundle.read(folder)
