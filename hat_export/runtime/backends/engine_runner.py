"""One TensorRT engine, ready to be called from several threads."""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from hat_export.base.closing import Closing
from hat_export.bundle.bundle import GraphInfo
from hat_export.bundle.engines import EngineInfo, Profile, Range
from hat_export.errors import EngineError, InputError
from hat_export.runtime.backends.cuda import Buffer, Cuda

#: Shapes whose launches are kept as captured CUDA graphs, per context.
CAPTURED_SHAPES = 8
#: Parts of a run, in order.
PARTS = ("host to device", "compute", "device to host")

Sizes = Mapping[str, int]


def choose_profile(profiles: Sequence[Profile], sizes: Sizes) -> int | None:
    """The first profile that takes the sizes of the dynamic dimensions, or None."""
    for number, profile in enumerate(profiles):
        if all(size in profile[dim] for dim, size in sizes.items()):
            return number
    return None


@dataclass(frozen=True)
class Batch:
    """Arrays of a size that an engine takes.

    Attributes:
        arrays: By name.
        real: Rows that count; those after them only fill the batch up.
    """

    arrays: Mapping[str, np.ndarray]
    real: int


def _filled(array: np.ndarray, rows: int) -> np.ndarray:
    """An array with its last row repeated until there are so many."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, 0)]) if missing > 0 else array


class EngineRunner(Closing):
    """Runs an engine; every thread that calls at the same time gets a context of its own.

    Args:
        cuda: CUDA.
        engine: The deserialized engine.
        make_context: Gives an execution context of it.
        graph: Inputs and outputs.
        info: The manifest's entry.
        contexts: Most contexts at a time; more callers wait.
        capture: Whether launches are captured as CUDA graphs, shape by shape. TensorRT-RTX does
            that by itself.
    """

    def __init__(
        self,
        cuda: Cuda,
        engine: Any,
        make_context: Any,
        graph: GraphInfo,
        info: EngineInfo,
        contexts: int,
        capture: bool,
    ) -> None:
        self._cuda = cuda
        self._engine = engine
        self._make_context = make_context
        self._graph = graph
        self._info = info
        self._capture = capture
        self._free: queue.LifoQueue[_Lane | None] = queue.LifoQueue()
        self._lanes: list[_Lane] = []
        for _ in range(contexts):
            self._free.put(None)

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[list[np.ndarray], dict[str, float]]:
        """Run the engine once.

        Args:
            inputs: By name; of sizes that a profile takes.
            outputs: Names of the outputs wanted; only these are copied back.

        Returns:
            The outputs, and the seconds on the device of each of :data:`PARTS`.

        Raises:
            InputError: if no profile takes the sizes.
            EngineError: if CUDA or TensorRT fails.
        """
        sizes = self.sizes(inputs)
        profile = choose_profile(self._info.profiles, sizes)
        if profile is None:
            shown = ", ".join(f"{size} {dim}" for dim, size in sizes.items())
            raise InputError(
                f"{self._info.file}: no profile takes {shown}; build with other --min-/--max- sizes"
            )
        with self._lane() as lane:
            return lane.run(profile, inputs, outputs)

    def profile_for(self, sizes: Sizes) -> Profile:
        """The first profile that takes a call as it is, else the one for the largest batches.

        Args:
            sizes: Of the call's dynamic dimensions; ``words`` can't be cut into pieces.

        Raises:
            InputError: if no profile takes so many words.
        """
        words = sizes.get("words")
        fitting = [p for p in self._info.profiles if words is None or words in p["words"]]
        if not fitting:
            raise InputError(
                f"{self._info.file}: no profile takes captions of {words} words; build with "
                "another --max-words"
            )
        whole = choose_profile(fitting, sizes)
        if whole is not None:
            return fitting[whole]
        return max(fitting, key=lambda profile: [profile[dim].largest for dim in sizes])

    def batches(self, sizes: Range, arrays: Mapping[str, np.ndarray]) -> Iterator[Batch]:
        """Arrays in pieces of sizes that a profile takes.

        Args:
            sizes: The profile's sizes of the arrays' first dimension.
            arrays: By name, with equally many rows.
        """
        count = len(next(iter(arrays.values())))
        for start in range(0, count, sizes.largest):
            rows = {name: array[start : start + sizes.largest] for name, array in arrays.items()}
            real = min(sizes.largest, count - start)
            filled = {name: _filled(array, sizes.smallest) for name, array in rows.items()}
            yield Batch(filled, real)

    def least(self, dim: str, size: int) -> int:
        """A size, or what it has to be filled up to where every profile begins beyond it."""
        return max(size, min(profile[dim].smallest for profile in self._info.profiles))

    def sizes(self, inputs: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Sizes of the dynamic dimensions of a call."""
        return {
            dim: array_size
            for tensor in self._graph.inputs
            for dim, array_size in zip(tensor.shape, inputs[tensor.name].shape, strict=True)
            if isinstance(dim, str)
        }

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        lane = self._free.get()
        try:
            if lane is None:
                lane = _Lane(self._cuda, self._make_context(), self._graph, self._capture)
                self._lanes.append(lane)
            yield lane
        except EngineError:
            # Its stream or its context may be in any state: the next caller gets new ones.
            if lane is not None:
                self._lanes.remove(lane)
                with suppress(EngineError):
                    lane.close()
                lane = None
            raise
        finally:
            self._free.put(lane)

    def close(self) -> None:
        """Free contexts, buffers and the engine."""
        for lane in self._lanes:
            lane.close()
        self._lanes.clear()
        self._engine = self._make_context = None


class _Lane(Closing):
    """A context with a stream and buffers of its own."""

    def __init__(self, cuda: Cuda, context: Any, graph: GraphInfo, capture: bool) -> None:
        if context is None:
            raise EngineError(f"{graph.file}: no execution context; is the GPU's memory full?")
        self._cuda = cuda
        self._context = context
        self._graph = graph
        self._capture = capture
        self._profile: int | None = None
        self._stream = cuda("cudaStreamCreate")
        self._events = [cuda("cudaEventCreate") for _ in range(len(PARTS) + 1)]
        names = [tensor.name for tensor in (*graph.inputs, *graph.outputs)]
        self._buffers = {name: Buffer(cuda) for name in names}
        #: Shapes -> executable graph; None where the shapes were run once and may be captured next.
        self._captured: OrderedDict[Any, Any] = OrderedDict()

    def run(
        self, profile: int, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> tuple[list[np.ndarray], dict[str, float]]:
        """Copy in, execute, copy out; seconds of each part on the device."""
        context, stream = self._context, self._stream
        if profile != self._profile:
            self._check(context.set_optimization_profile_async(profile, stream), "choose a profile")
            self._cuda("cudaStreamSynchronize", stream)
            self._profile = profile
            self._forget()
        moved = False
        for tensor in self._graph.inputs:
            array = np.ascontiguousarray(inputs[tensor.name])
            moved |= self._buffers[tensor.name].reserve(array.nbytes)
            self._buffers[tensor.name].view(array.shape, array.dtype)[...] = array
            self._check(context.set_input_shape(tensor.name, array.shape), "take the input's shape")
        views = {}
        for tensor in self._graph.outputs:
            shape = tuple(int(size) for size in context.get_tensor_shape(tensor.name))
            dtype = np.dtype(tensor.dtype)
            moved |= self._buffers[tensor.name].reserve(int(np.prod(shape)) * dtype.itemsize)
            views[tensor.name] = (shape, dtype)
        if moved:
            self._forget()
        for name, buffer in self._buffers.items():
            self._check(context.set_tensor_address(name, buffer.device), "take a buffer")
        self._record(0)
        for tensor in self._graph.inputs:
            self._buffers[tensor.name].upload(inputs[tensor.name].nbytes, stream)
        self._record(1)
        self._execute(tuple(inputs[tensor.name].shape for tensor in self._graph.inputs))
        self._record(2)
        for name in outputs:
            shape, dtype = views[name]
            self._buffers[name].download(int(np.prod(shape)) * dtype.itemsize, stream)
        self._record(3)
        self._cuda("cudaStreamSynchronize", stream)
        results = [self._buffers[name].view(*views[name]).copy() for name in outputs]
        return results, self._seconds()

    def _execute(self, shapes: Any) -> None:
        """Launch the engine: the first time as it is, then captured, then by the captured graph."""
        if not self._capture:
            self._launch()
            return
        if shapes not in self._captured:
            # TensorRT sets itself up for new shapes in the first launch, which can't be captured.
            self._launch()
            self._captured[shapes] = None
            if len(self._captured) > CAPTURED_SHAPES:
                self._drop(self._captured.popitem(last=False)[1])
            return
        self._captured.move_to_end(shapes)
        if self._captured[shapes] is None:
            mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            self._cuda("cudaStreamBeginCapture", self._stream, mode)
            try:
                self._launch()
            except EngineError:
                with suppress(EngineError):
                    self._cuda("cudaStreamEndCapture", self._stream)
                raise
            graph = self._cuda("cudaStreamEndCapture", self._stream)
            self._captured[shapes] = self._cuda("cudaGraphInstantiate", graph, 0)
            self._cuda("cudaGraphDestroy", graph)
        self._cuda("cudaGraphLaunch", self._captured[shapes], self._stream)

    def _launch(self) -> None:
        self._check(self._context.execute_async_v3(self._stream), "execute")

    def _record(self, number: int) -> None:
        self._cuda("cudaEventRecord", self._events[number], self._stream)

    def _seconds(self) -> dict[str, float]:
        return {
            part: float(self._cuda("cudaEventElapsedTime", *self._events[number : number + 2]))
            / 1e3
            for number, part in enumerate(PARTS)
        }

    def _check(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(f"{self._graph.file}: the engine doesn't {what}; see TensorRT's log")

    def _forget(self) -> None:
        """Captured graphs hold addresses: they are worthless once a buffer has moved."""
        for graph in self._captured.values():
            self._drop(graph)
        self._captured.clear()

    def _drop(self, graph: Any) -> None:
        if graph is not None:
            self._cuda("cudaGraphExecDestroy", graph)

    def close(self) -> None:
        """Free everything."""
        self._forget()
        for buffer in self._buffers.values():
            buffer.close()
        for event in self._events:
            self._cuda("cudaEventDestroy", event)
        self._cuda("cudaStreamDestroy", self._stream)
        self._context = None
