"""The public Python API: two ways to get a session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hat_export.environment import default_threads
from hat_export.errors import BackendUnavailableError
from hat_export.session import Session

if TYPE_CHECKING:
    from hat_export.backends.torch_backend import TorchSession
    from hat_export.spec import ModelSpec


def load(
    checkpoint: Path | str,
    spec: ModelSpec | None = None,
    vocabulary: Path | str | None = None,
    threads: int | None = None,
) -> TorchSession:
    """The PyTorch reference of a checkpoint.

    Args:
        checkpoint: A Lightning ``.ckpt``, a plain PyTorch state dict, a ``.safetensors`` file or a
            folder with ``model.safetensors``, ``spec.json`` and ``vocab.txt``.
        spec: Architecture; needed where the checkpoint is neither of official size nor
            accompanied by a ``spec.json``.
        vocabulary: ``vocab.txt``; needed where the vocabulary is neither BERT's nor beside
            the checkpoint.
        threads: Threads for PyTorch; default: one per core.

    Raises:
        CheckpointError: if the file can't be read, asks for code to be run, or holds no HAT.
        SpecError: if the architecture or the vocabulary can't be known.
        BackendUnavailableError: if PyTorch, timm or transformers isn't installed.
    """
    require_export_packages()
    from hat_export.backends.torch_backend import open_checkpoint

    words = None if vocabulary is None else Path(vocabulary)
    return open_checkpoint(Path(checkpoint), spec, words, threads or default_threads())


def open_bundle(
    bundle: Path | str,
    backend: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = True,
) -> Session:
    """A session on a bundle, after checking its hashes and running its self-test.

    Args:
        bundle: The folder that ``hat-export onnx`` wrote.
        backend: What runs it; see :data:`hat_export.backends.BACKENDS`.
        threads: Threads for the backend; default: one per core.
        verify: False skips the hashes and the self-test, for a faster start.

    Raises:
        BundleError: if the bundle is damaged, or computes something else than when exported.
        BackendUnavailableError: if the backend isn't installed.
    """
    from hat_export.backends import open_checked

    return open_checked(bundle, backend, threads or default_threads(), verify)


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
    import importlib.util

    for package in packages:
        if importlib.util.find_spec(package) is None:
            extra = EXTRAS.get(package, "export")
            raise BackendUnavailableError(
                f"{package} isn't installed; install it with: pip install 'hat-export[{extra}]'"
            )
