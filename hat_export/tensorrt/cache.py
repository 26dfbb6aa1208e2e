"""Engines that were built before, kept so that the same build need not run twice.

An engine depends on nothing but what its key holds, so an entry never has to be compared with
anything. An entry is a folder that appears at once, complete; one that is damaged is removed and
built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from hat_export.base.files import new_folder, sha256_of, write_text
from hat_export.errors import MALFORMED, OutputError
from hat_export.runtime.trt_library import TensorRT, find_gpu
from hat_export.tensorrt.build import BuiltEngine, EngineRequest
from hat_export.tensorrt.fusion import EngineLayer

#: Changes when builds of the same request would differ from older ones.
KEY_VERSION = 1
_ENGINE = "engine"
_LOG = "log"
_RECORD = "manifest.json"


@dataclass(frozen=True)
class CachedEngine:
    """An engine out of the cache.

    Attributes:
        engine: Its file.
        log: The log of its build.
        built: What the build gave.
    """

    engine: Path
    log: Path
    built: BuiltEngine


class EngineCache:
    """A folder of engines.

    Args:
        folder: Where it is; made if it isn't there.
        library: What builds.

    Raises:
        OutputError: if it can't be written to: said before minutes are spent on a build.
    """

    def __init__(self, folder: Path, library: TensorRT) -> None:
        self._folder = folder
        self._library = library
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error.strerror) from None
        if not os.access(folder, os.W_OK):
            raise _unwritable(folder, "not writable")

    @property
    def timing_cache(self) -> Path:
        """File of measured kernels, for this library, version and GPU."""
        gpu = find_gpu()
        device = f"sm_{gpu.capability}" if gpu else "no-gpu"
        return self._folder / f"{self._library.name}-{self._library.version}-{device}.timing"

    def key(self, request: EngineRequest, graph_sha256: str, precision: str) -> str:
        """Hash of everything that an engine depends on."""
        gpu = find_gpu()
        facts = {
            "key_version": KEY_VERSION,
            "graph": graph_sha256,
            "precision": precision,
            "profiles": [dict(profile) for profile in request.profiles],
            "targets": request.targets,
            "tf32": request.tf32,
            "library": self._library.name,
            "version": self._library.version,
            # Without chosen targets the engine is for the GPU at hand; with several of them the
            # GPU at hand still decides which kernels were the fastest.
            "device": None if gpu is None else [gpu.name, gpu.capability],
        }
        if request.plugin is not None:
            facts["plugin"] = asdict(request.plugin)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def find(self, key: str) -> CachedEngine | None:
        """The engine of a key, or None; a damaged entry is removed."""
        folder = self._folder / key
        if not folder.is_dir():
            return None
        try:
            record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
            for file in (_ENGINE, _LOG):
                if sha256_of(folder / file) != record["sha256"][file]:
                    raise ValueError("another hash")
            built = BuiltEngine(
                layers=tuple(
                    EngineLayer(layer["name"], tuple(layer["nodes"])) for layer in record["layers"]
                ),
                device=str(record["device"]),
                targets=tuple(int(target) for target in record["targets"]),
                warnings={str(text): int(count) for text, count in record["warnings"].items()},
                seconds=float(record["seconds"]),
            )
        except MALFORMED:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return CachedEngine(folder / _ENGINE, folder / _LOG, built)

    def store(self, key: str, engine: Path, log: Path, built: BuiltEngine) -> None:
        """Keep an engine.

        Raises:
            OutputError: if the cache can't be written.
        """
        with new_folder(self._folder / key, overwrite=True) as folder:
            shutil.copyfile(engine, folder / _ENGINE)
            shutil.copyfile(log, folder / _LOG)
            hashes = {file: sha256_of(folder / file) for file in (_ENGINE, _LOG)}
            record = asdict(built) | {"sha256": hashes}
            write_text(folder / _RECORD, json.dumps(record, indent=1))


def _unwritable(folder: Path, reason: str | None) -> OutputError:
    return OutputError(
        f"{folder}: the engine cache can't be written ({reason}); choose another --cache, or "
        "--no-cache"
    )
