"""Where the library of ONNX Runtime operators (``operators/``) lies.

    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(operators.library_path()))

after which a session of these options knows ``WindowAttention``, ``Linear`` and the others of the
domain ``hat_export``.
"""

from __future__ import annotations

from pathlib import Path

from hat_export.errors import BackendUnavailableError
from hat_export.kernels import alignment_cpu


def library_path() -> Path:
    """The library of the operators, to be registered with a session's options.

    It lies beside the kernel's own library, which it loads; ``HAT_EXPORT_KERNEL_LIBRARY``, which
    names another kernel library, thus moves it too.

    Raises:
        BackendUnavailableError: The library is missing.
    """
    kernel = alignment_cpu.library_file()
    file = kernel.with_name(f"libhat_operators{kernel.suffix}")
    if not file.is_file():
        raise BackendUnavailableError(
            f"the library of operators {file} is missing: install a C++20 compiler and "
            f"reinstall hat-export, or set {alignment_cpu.LIBRARY_VARIABLE} to the kernel's "
            "library in a folder that has both"
        )
    return file
