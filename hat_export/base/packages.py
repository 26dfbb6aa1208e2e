"""Which packages are installed, and how to get those that aren't."""

from __future__ import annotations

import importlib.util

from hat_export.errors import BackendUnavailableError

#: Package -> the extra that installs it, where it isn't ``export``.
EXTRAS = {"onnxruntime": "cpu"}


def require_export_packages(*further: str) -> None:
    """Check that what the PyTorch reference needs, and some further packages, are installed.

    Raises:
        BackendUnavailableError: naming the package that is missing.
    """
    require_packages("torch", "timm", "transformers", "safetensors", *further)


def require_packages(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        BackendUnavailableError: naming the one that is missing, and how to get it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            extra = EXTRAS.get(package, "export")
            raise BackendUnavailableError(
                f"{package} isn't installed; install it with: pip install 'hat-export[{extra}]'"
            )
