"""TensorRT and TensorRT-RTX through one door.

The two have one API with few differences, which are told apart by what a module has rather than by
its name or version. What TensorRT 11 removed (implicit precision, calibrators) is not used, so that
TensorRT 10, 11 and RTX run the same code.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from hat_export.errors import BackendUnavailableError

#: Name of a library -> its import, and the command that installs it. The first is preferred where
#: there is a GPU, the second builds everywhere.
LIBRARIES = {
    "tensorrt": ("tensorrt", "pip install 'hat-export[trt]'"),
    "tensorrt-rtx": ("tensorrt_rtx", "pip install 'hat-export[rtx]'"),
}


@dataclass(frozen=True)
class Gpu:
    """The current CUDA device.

    Attributes:
        name: As the driver calls it.
        capability: Compute capability, 10 * major + minor.
    """

    name: str
    capability: int


@dataclass(frozen=True)
class TensorRT:
    """One of the two libraries, imported.

    Attributes:
        name: A key of :data:`LIBRARIES`.
        module: The imported module.
    """

    name: str
    module: Any

    @property
    def version(self) -> str:
        """The library's version."""
        return str(self.module.__version__)

    @property
    def targets(self) -> tuple[int, ...]:
        """Compute capabilities that can be chosen; empty where it builds for the present GPU."""
        kinds = getattr(self.module, "ComputeCapability", None)
        if kinds is None:
            return ()
        names = (name for name in kinds.__members__ if name.startswith("SM"))
        return tuple(sorted(int(name.removeprefix("SM")) for name in names))

    @property
    def finishes_on_device(self) -> bool:
        """Whether kernels are compiled when an engine is loaded, and can be kept in a cache."""
        return hasattr(self.module, "IRuntimeCache")

    def __str__(self) -> str:
        """Name and version."""
        return f"{self.name} {self.version}"


def load_library(runtime: str) -> TensorRT:
    """Import a library.

    Args:
        runtime: A key of :data:`LIBRARIES`, or ``auto``: TensorRT where it is installed and a GPU
            is present, else TensorRT-RTX.

    Raises:
        BackendUnavailableError: if it isn't installed or doesn't load; with the remedy.
    """
    if runtime != "auto":
        module, reason = _import(runtime)
        if module is None:
            raise BackendUnavailableError(f"{reason}; install it with: {LIBRARIES[runtime][1]}")
        return TensorRT(runtime, module)
    reasons = []
    for name, (_, install) in LIBRARIES.items():
        module, reason = _import(name)
        if module is not None and (name != "tensorrt" or find_gpu() is not None):
            return TensorRT(name, module)
        reasons.append(f"{reason or f'{name} needs a GPU'} ({install})")
    raise BackendUnavailableError(f"no TensorRT: {'; '.join(reasons)}")


def _import(name: str) -> tuple[ModuleType | None, str]:
    """The module, or why it isn't there."""
    try:
        return importlib.import_module(LIBRARIES[name][0]), ""
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs
        return None, f"{name} can't be imported: {error}"


def find_gpu() -> Gpu | None:
    """The current CUDA device, or None where there is no GPU, driver or ``cuda-bindings``."""
    try:
        from cuda.bindings import runtime as cudart
    except ImportError:
        return None
    error, count = cudart.cudaGetDeviceCount()
    if error != cudart.cudaError_t.cudaSuccess or not count:
        return None
    error, device = cudart.cudaGetDevice()
    if error != cudart.cudaError_t.cudaSuccess:
        return None
    error, properties = cudart.cudaGetDeviceProperties(device)
    if error != cudart.cudaError_t.cudaSuccess:
        return None
    name = properties.name
    text = name.decode() if isinstance(name, bytes) else str(name)
    return Gpu(text, 10 * int(properties.major) + int(properties.minor))
