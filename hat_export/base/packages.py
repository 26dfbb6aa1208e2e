"""Which packages are installed, in which versions, and how to get those that aren't."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from hat_export.errors import BackendUnavailableError

#: Package -> the extra that installs it, where it isn't ``export``.
EXTRAS = {"onnxruntime": "cpu"}

#: Those whose versions manifests and reports record.
RECORDED = (
    "hat-export",
    "numpy",
    "onnx",
    "onnxruntime",
    "torch",
    "timm",
    "transformers",
    "tokenizers",
)


def package_versions(packages: tuple[str, ...] = RECORDED) -> dict[str, str]:
    """Versions of the installed ones among some packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


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
