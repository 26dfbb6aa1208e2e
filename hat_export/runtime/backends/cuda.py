"""The few CUDA calls that a session needs: streams, events, buffers, captured graphs.

A thin layer over ``cuda-bindings`` that turns error codes into errors and owns what it allocates.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from hat_export.base.closing import Closing
from hat_export.errors import BackendUnavailableError, EngineError

#: Buffers grow to a multiple of this, so that a slightly larger batch doesn't move them.
GRANULE = 1 << 20


class Cuda:
    """CUDA's runtime with checked calls.

    Args:
        runtime: ``cuda.bindings.runtime``.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime.

        Returns:
            Its result, without the error code; None where there is none.

        Raises:
            EngineError: if it fails; names the function and CUDA's reason.
        """
        error, *results = getattr(self.runtime, name)(*arguments)
        if int(error) != 0:
            _, text = self.runtime.cudaGetErrorString(error)
            reason = text.decode() if isinstance(text, bytes) else str(text)
            raise EngineError(f"CUDA: {name} failed: {reason}")
        return results[0] if results else None


def open_cuda() -> Cuda:
    """CUDA on the present device.

    Raises:
        BackendUnavailableError: if the bindings, the driver or a GPU is missing.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailableError(
            f"backend tensorrt: {error}; install it with: pip install 'hat-export[trt]'"
        ) from None
    cuda = Cuda(runtime)
    try:
        count = cuda("cudaGetDeviceCount")
    except EngineError as error:
        raise BackendUnavailableError(
            f"backend tensorrt needs an NVIDIA GPU and its driver ({error}); check results on a "
            "CPU with --backend emulation"
        ) from None
    if not count:
        raise BackendUnavailableError(
            "backend tensorrt needs an NVIDIA GPU and CUDA shows none; check results on a CPU with "
            "--backend emulation"
        )
    cuda("cudaFree", 0)  # makes the context, in which compiled kernels are looked up
    return cuda


class Buffer(Closing):
    """Device memory with its page-locked twin on the host; grows, never shrinks.

    Args:
        cuda: CUDA.

    Attributes:
        device: Address on the device.
        host: Address on the host.
    """

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._bytes = 0
        self.device = 0
        self.host = 0

    def reserve(self, count: int) -> bool:
        """Make room for so many bytes; True if the addresses changed."""
        if count <= self._bytes:
            return False
        self.close()
        size = -(-count // GRANULE) * GRANULE
        self.device = int(self._cuda("cudaMalloc", size))
        self.host = int(self._cuda("cudaMallocHost", size))
        self._bytes = size
        return True

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """The host memory as an array."""
        count = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_byte * count).from_address(self.host)
        array: np.ndarray = np.ndarray(shape, dtype, buffer=memoryview(memory))
        return array

    def upload(self, count: int, stream: Any) -> None:
        """Copy so many bytes to the device."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._cuda("cudaMemcpyAsync", self.device, self.host, count, kind, stream)

    def download(self, count: int, stream: Any) -> None:
        """Copy so many bytes to the host."""
        kind = self._cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._cuda("cudaMemcpyAsync", self.host, self.device, count, kind, stream)

    def close(self) -> None:
        """Free both memories."""
        if self._bytes:
            self._cuda("cudaFree", self.device)
            self._cuda("cudaFreeHost", self.host)
            self._bytes = self.device = self.host = 0
