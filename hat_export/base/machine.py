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


#: Names another folder for what may be kept between runs.
CACHE_VARIABLE = "HAT_EXPORT_CACHE"


def default_cache() -> Path:
    """Where features and scores are kept between runs: as the XDG base directories say."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hat-export"


def package_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones among some packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


#: What matters to integer and low-precision arithmetic, as Linux spells it in /proc/cpuinfo.
CPU_FEATURES = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)


def cpu_features() -> frozenset[str]:
    """Which of :data:`CPU_FEATURES` this CPU has; none where the system isn't Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split()) & set(CPU_FEATURES)
    return frozenset()


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


def private_memory() -> int | None:
    """Resident memory of this process in bytes without files that it maps; None where unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split() for line in lines if line.startswith("RssAnon:"))
    return next((int(words[1]) * 1024 for words in found), None)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    for line in lines:
        if line.startswith(("model name", "Hardware")):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
