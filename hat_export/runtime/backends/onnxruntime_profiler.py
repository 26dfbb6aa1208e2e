"""Bundles on ONNX Runtime with its profiler on."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from hat_export.bundle.bundle import Bundle
from hat_export.runtime.backends.onnxruntime_backend import OnnxRuntimeSession


class ProfiledSession(OnnxRuntimeSession):
    """A session whose graphs write down when each of their nodes ran.

    Args:
        bundle: The bundle, already checked.
        threads: Intra-operator threads.
        folder: Gets the profiles.
    """

    def __init__(self, bundle: Bundle, threads: int, folder: Path) -> None:
        self._folder = folder
        super().__init__(bundle, threads)

    def _options(self) -> onnxruntime.SessionOptions:
        options = super()._options()
        options.enable_profiling = True
        # Every session adds the time to the name; the counter keeps those of one second apart.
        options.profile_file_prefix = str(
            self._folder / f"graph{len(list(self._folder.iterdir()))}"
        )
        return options

    def finish(self) -> dict[str, Path]:
        """End profiling; the profile of each graph by its name."""
        return {name: Path(graph.end_profiling()) for name, graph in self._graphs.items()}
