"""What is known of a target besides its times: size, starts and memory."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hat_export.base.progress import Progress
from hat_export.benchmark.latency import process
from hat_export.bundle.bundle import Bundle, is_bundle
from hat_export.errors import InputError
from hat_export.spec import ModelSpec

#: What runs checkpoints.
TORCH = "torch"


@dataclass(frozen=True)
class Target:
    """One thing to measure.

    Attributes:
        name: In the report.
        path: Checkpoint or bundle.
        backend: What runs it.
    """

    name: str
    path: Path
    backend: str


def name_targets(paths: list[Path], backends: list[str]) -> list[Target]:
    """Every checkpoint once, every bundle on every backend, each under a name of its own.

    Raises:
        InputError: if two would be called the same.
    """
    found = [
        Target(f"{path.name} ({backend})", path, backend)
        for path in paths
        for backend in (backends if is_bundle(path) else [TORCH])
    ]
    names = [target.name for target in found]
    result = []
    for target in found:
        alike = names.count(target.name) > 1
        name = f"{target.path.parent.name}/{target.name}" if alike else target.name
        result.append(Target(name, target.path, target.backend))
    for target in result:
        if sum(other.name == target.name for other in result) > 1:
            raise InputError(
                f"{target.path}: two targets would be called the same in the report; name each "
                "once, or rename one of their folders"
            )
    return result


def describe(
    target: Target,
    threads: int,
    cold_starts: int,
    work: tuple[int, int, int],
    spec: ModelSpec | None,
    vocabulary: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Size, starts and memory of a target, each start in a process of its own.

    Args:
        target: The target.
        threads: Of its session.
        cold_starts: Processes to start; 0 leaves memory out, too.
        work: Images, captions and words of the largest batches.
        spec: Architecture of a checkpoint that doesn't tell it.
        vocabulary: Vocabulary of a checkpoint that has none beside it.
        progress: Told what begins.

    Raises:
        HatError: if a process fails.
    """
    bundle = Bundle.read(target.path, verify=False) if is_bundle(target.path) else None
    described: dict[str, Any] = {
        "name": target.name,
        "path": target.path.name,
        "backend": target.backend,
        "precision": bundle.manifest.precision if bundle else "fp32",
        "bytes": _bytes_of(target.path),
        "starts": [],
        "peak_bytes": None,
    }
    if not cold_starts:
        return described
    request = process.Target(
        str(target.path),
        target.backend,
        threads,
        None if spec is None else json.dumps(spec.to_json()),
        None if vocabulary is None else str(vocabulary),
    )
    for number in range(1, cold_starts + 1):
        progress.step(f"cold start {number} of {cold_starts}: {target.name}")
        described["starts"].append(asdict(process.start(request)))
    progress.step(f"memory at work: {target.name}")
    images, captions, words = work
    described["peak_bytes"] = process.start(request, images, captions, words).peak_bytes
    return described


def _bytes_of(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
