"""Facts about the machine and the software, for manifests and reports."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = (
    "hat-export",
    "numpy",
    "onnx",
    "onnxruntime",
    "torch",
    "timm",
    "transformers",
    "tokenizers",
)


def default_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones among some packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, str | int | float]:
    """What a timing needs beside it: CPU model, cores, load, system."""
    facts: dict[str, str | int | float] = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": default_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    return facts


def environment() -> dict[str, Any]:
    """Machine and package versions, as reports record them."""
    return {"machine": machine(), "versions": package_versions()}


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where unknown.

    Linux counts ``ru_maxrss`` over the process that forked this one, too; ``VmHWM`` begins anew
    when a program is started.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        if line.startswith(("model name", "Hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
