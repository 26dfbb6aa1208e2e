"""The public Python API: two ways to get a session."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hat_export.base.machine import default_threads
from hat_export.bundle.bundle import is_bundle
from hat_export.errors import BackendUnavailableError
from hat_export.runtime.session import Session

if TYPE_CHECKING:
    from hat_export.base.ray import RayWorkers
    from hat_export.parity.run import ParityOutcome, Side
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
    from hat_export.runtime.backends import open_checked

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


def check_parity(
    reference: Path | str,
    candidate: Path | str,
    data: Path | str,
    *,
    images: Sequence[Path | str] = (),
    split: str = "test",
    captions: int = 5,
    limit: int | None = None,
    max_drop: str | None = None,
    strict: bool = False,
    folds: int | None = None,
    attribution: bool | None = None,
    localize: bool = False,
    cache: Path | str | None = None,
    batch: int = 50,
    backend: str = "onnxruntime",
    reference_backend: str | None = None,
    threads: int | None = None,
    spec: ModelSpec | None = None,
    vocabulary: Path | str | None = None,
    ray: RayWorkers | None = None,
) -> ParityOutcome:
    """Does a candidate retrieve what a reference retrieves? What ``hat-bench parity`` runs.

    Args:
        reference: Checkpoint or bundle.
        candidate: Checkpoint or bundle.
        data: A dataset, see :func:`hat_export.data.readers.read_dataset`.
        images: Folders or zips with its pictures; default: beside it.
        split: Split of the dataset.
        captions: Captions per image.
        limit: Use only so many images, evenly spread.
        max_drop: Budget in points, such as ``r1=0.2,rsum=0.5``; default:
            :data:`hat_export.parity.budget.DEFAULT_BUDGET`.
        strict: Whether what can't be judged has failed.
        folds: Show the mean over so many folds too.
        attribution: Whether to name the component at fault; None: if a rank changed beyond ties.
        localize: Whether to compare the graphs layer by layer.
        cache: Where features and scores are kept; None: nothing is kept.
        batch: Images or captions encoded at a time.
        backend: What runs bundles.
        reference_backend: What runs the reference if it is a bundle; default: as ``backend``.
        threads: Default: one per core.
        spec: Architecture, where a checkpoint doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside a checkpoint.
        ray: Workers of :mod:`hat_export.base.ray` that encode and score; None: this process.

    Returns:
        The verdict with everything behind it; :func:`hat_export.parity.run.parity_report` makes the
        report.

    Raises:
        HatError: if a model, the dataset or the cache can't be used.
    """
    from hat_export.data.readers import read_dataset
    from hat_export.parity.budget import DEFAULT_BUDGET, parse_budget
    from hat_export.parity.run import ParitySettings, run_parity

    settings = ParitySettings(
        budget=parse_budget(DEFAULT_BUDGET if max_drop is None else max_drop),
        strict=strict,
        cache=None if cache is None else Path(cache),
        folds=folds,
        batch=batch,
        attribution=attribution,
        localize=localize,
        threads=threads,
        ray=ray,
    )
    dataset = read_dataset(Path(data), split, [Path(path) for path in images])
    first, second = (
        parity_side(Path(target), name, spec, vocabulary)
        for target, name in ((reference, reference_backend or backend), (candidate, backend))
    )
    return run_parity(first, second, dataset.take(captions).limit(limit), settings)


def parity_side(
    target: Path, backend: str, spec: ModelSpec | None, vocabulary: Path | str | None
) -> Side:
    """One side of a comparison, which a worker with another working folder can open too.

    Args:
        target: Checkpoint or bundle.
        backend: As for :func:`open_target`.
        spec: As for :func:`load`.
        vocabulary: As for :func:`load`.
    """
    from hat_export.parity.run import Side

    if vocabulary is not None:
        vocabulary = Path(vocabulary).absolute()
    opened = partial(open_target, target.absolute(), backend, spec=spec, vocabulary=vocabulary)
    return Side(target, opened)


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
