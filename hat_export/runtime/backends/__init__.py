"""Backends: what can run a bundle. One module each, and one entry in the table."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from hat_export.bundle.bundle import Bundle
from hat_export.errors import BackendUnavailableError
from hat_export.runtime.session import Session


@dataclass(frozen=True)
class Backend:
    """One entry of the table.

    Attributes:
        name: What users call it.
        package: Import that has to be there.
        install: Command that puts it there.
        module: Module with ``open_session(bundle, threads) -> Session``.
    """

    name: str
    package: str
    install: str
    module: str

    def unavailable(self) -> str | None:
        """Why the backend can't be used here, or None."""
        try:
            importlib.import_module(self.package)
        except ImportError as error:
            return f"backend {self.name}: {error}; install it with: {self.install}"
        return None

    def open(self, bundle: Bundle, threads: int) -> Session:
        """A session on a bundle.

        Raises:
            BackendUnavailableError: if the backend's library isn't installed.
        """
        reason = self.unavailable()
        if reason:
            raise BackendUnavailableError(reason)
        module = importlib.import_module(self.module)
        return cast(Session, module.open_session(bundle, threads))


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            name="onnxruntime",
            package="onnxruntime",
            install="pip install 'hat-export[cpu]'",
            module="hat_export.runtime.backends.onnxruntime_backend",
        ),
        Backend(
            name="emulation",
            package="onnx",
            install="pip install 'hat-export[cpu,export]'",
            module="hat_export.runtime.backends.emulation_backend",
        ),
        Backend(
            name="tensorrt",
            package="cuda.bindings.runtime",
            install="pip install 'hat-export[trt]'",
            module="hat_export.runtime.backends.tensorrt_backend",
        ),
    )
}


def find_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendUnavailableError: listing the names that there are.
    """
    if name not in BACKENDS:
        known = ", ".join(BACKENDS)
        raise BackendUnavailableError(f"no backend {name!r}; there are: {known}")
    return BACKENDS[name]


def open_checked(
    path: Path | str,
    backend: str,
    threads: int,
    verify: bool,
    require_signature: Path | None = None,
) -> Session:
    """Read a bundle, check its hashes, open it and have it test itself.

    Args:
        path: The bundle's folder.
        backend: Name in the table.
        threads: Threads that the backend may use.
        verify: Whether to check hashes and run the self-test.
        require_signature: Public key that must have signed the bundle; hashes are checked then in
            any case.

    Raises:
        BundleError: if the bundle is damaged, or computes something else than when exported.
        BackendUnavailableError: if the backend can't be used here.
    """
    from hat_export.runtime.self_test import run_self_test

    chosen = find_backend(backend)
    if require_signature is not None:
        from hat_export.bundle.signature import check_signature

        check_signature(Path(path), require_signature)
    bundle = Bundle.read(path, verify or require_signature is not None)
    session = chosen.open(bundle, threads)
    if verify:
        try:
            run_self_test(bundle, session)
        except BaseException:
            session.close()
            raise
    return session
