"""Opening a session: on a checkpoint in PyTorch, on a bundle, or on whichever a path is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hat_export.base.machine import default_threads
from hat_export.base.packages import require_export_packages
from hat_export.bundle.bundle import is_bundle
from hat_export.runtime.backends import open_checked
from hat_export.runtime.session import Session

if TYPE_CHECKING:
    from hat_export.runtime.backends.torch_backend import TorchSession
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
    from hat_export.runtime.backends.torch_backend import open_checkpoint

    words = None if vocabulary is None else Path(vocabulary)
    return open_checkpoint(Path(checkpoint), spec, words, threads or default_threads())


def open_bundle(
    bundle: Path | str,
    backend: str = "onnxruntime",
    threads: int | None = None,
    verify: bool = True,
    require_signature: Path | str | None = None,
) -> Session:
    """A session on a bundle, after checking its hashes and running its self-test.

    Args:
        bundle: The folder that ``hat-export onnx`` wrote.
        backend: What runs it; see :data:`hat_export.runtime.backends.BACKENDS`.
        threads: Threads for the backend; default: one per core.
        verify: False skips the hashes and the self-test, for a faster start.
        require_signature: Public key by which ``hat-export sign`` must have signed the bundle.

    Raises:
        BundleError: if the bundle is damaged, or computes something else than when exported.
        SignatureError: if it isn't signed by the key that is required.
        BackendUnavailableError: if the backend isn't installed.
    """
    key = None if require_signature is None else Path(require_signature)
    return open_checked(bundle, backend, threads or default_threads(), verify, key)


def open_target(
    target: Path | str,
    backend: str = "onnxruntime",
    threads: int | None = None,
    spec: ModelSpec | None = None,
    vocabulary: Path | str | None = None,
) -> Session:
    """A session on a bundle (``backend``) or a checkpoint (PyTorch).

    Args:
        target: Which of them it is, is seen from the path.
        backend: As for :func:`open_bundle`.
        threads: Threads; default: one per core.
        spec: As for :func:`load`.
        vocabulary: As for :func:`load`.

    Raises:
        HatError: as :func:`open_bundle` and :func:`load`.
    """
    if is_bundle(Path(target)):
        return open_bundle(target, backend, threads)
    return load(target, spec, vocabulary, threads)
