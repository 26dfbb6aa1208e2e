"""Facts about this machine, as manifests and reports record them, and the memory of this process.

What the system doesn't tell is :data:`NOT_KNOWN`, or None where a number is asked for.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from hat_export.base.packages import package_versions

NOT_KNOWN = "not known"

#: What matters to integer and low-precision arithmetic, as Linux spells it in /proc/cpuinfo.
CPU_FEATURES = (
    "avx2 avx512f avx_vnni avx512_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16 asimd asimddp "
    "i8mm bf16 sve"
).split()

#: Instruction sets that kernels are chosen by, as Linux names them (x86-64 and Arm).
KERNEL_FLAGS = (
    "sse4_2 fma avx avx2 f16c avx_vnni avx512f avx512vl avx512bw avx512_vnni avx512_bf16 "
    "avx512_fp16 amx_tile amx_int8 amx_bf16 asimd asimdhp asimddp bf16 i8mm sve sve2"
).split()

#: Variables by which users set the number and the waiting of threads.
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "OMP_PROC_BIND",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY",
    "TOKENIZERS_PARALLELISM",
)


def default_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_features() -> frozenset[str]:
    """Which of :data:`CPU_FEATURES` this CPU has; none where the system isn't Linux."""
    return _cpu_flags() & frozenset(CPU_FEATURES)


def environment() -> dict[str, Any]:
    """Machine and package versions, as reports record them."""
    return {"machine": describe_machine(), "versions": package_versions()}


def describe_machine() -> dict[str, str | int | float]:
    """What a result needs beside it: CPU model, cores, load, system."""
    model = _field(_text("/proc/cpuinfo"), ("model name", "Hardware"))
    facts: dict[str, str | int | float] = {
        "cpu": model or platform.processor() or "unknown",
        "architecture": platform.machine(),
        "cores": default_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if hasattr(os, "getloadavg"):
        facts["load_average"] = round(os.getloadavg()[0], 2)
    return facts


def hardware() -> dict[str, Any]:
    """What a timing hangs on besides: instruction sets, clock, load, pinning, accelerator."""
    flags = _cpu_flags()
    memory = _field(_text("/proc/meminfo"), ("MemTotal",))
    return {
        "cpu_flags": " ".join(flag for flag in KERNEL_FLAGS if flag in flags) or NOT_KNOWN,
        "virtual_machine": ("yes" if "hypervisor" in flags else "no") if flags else NOT_KNOWN,
        "frequency_mhz": _field(_text("/proc/cpuinfo"), ("cpu MHz",)) or NOT_KNOWN,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or NOT_KNOWN,
        "cpu_quota": _text("/sys/fs/cgroup/cpu.max").strip() or NOT_KNOWN,
        "affinity": _affinity(),
        "thread_variables": _thread_variables(),
        "load_averages": _load_averages(),
        "memory_bytes": 1024 * int(memory.split()[0]) if memory else NOT_KNOWN,
        "gpu": _gpu(),
    }


def peak_memory() -> int | None:
    """Largest resident memory of this process so far, in bytes; None where unknown.

    Linux counts ``ru_maxrss`` over the process that forked this one, too; ``VmHWM`` begins anew
    when a program is started.
    """
    peak = _own_memory("VmHWM")
    if peak is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    scale = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def private_memory() -> int | None:
    """Resident memory of this process in bytes without files that it maps; None where unknown."""
    return _own_memory("RssAnon")


def _own_memory(name: str) -> int | None:
    """A figure that Linux gives in kB for this process, in bytes."""
    value = _field(_text("/proc/self/status"), (name,))
    return 1024 * int(value.split()[0]) if value else None


def _cpu_flags() -> frozenset[str]:
    return frozenset(_field(_text("/proc/cpuinfo"), ("flags", "Features")).split())


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(text: str, names: tuple[str, ...]) -> str:
    """The value of the first line ``NAME: VALUE``; empty if there is none."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in names:
            return value.strip()
    return ""


def _affinity() -> str:
    if not hasattr(os, "sched_getaffinity"):
        return NOT_KNOWN
    allowed = sorted(os.sched_getaffinity(0))
    pinned = len(allowed) < (os.cpu_count() or 0)
    cores = ",".join(map(str, allowed))
    return f"pinned to {cores}" if pinned else f"not pinned ({len(allowed)} cores)"


def _thread_variables() -> str:
    found = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    return " ".join(found) or "none set"


def _load_averages() -> str:
    if not hasattr(os, "getloadavg"):
        return NOT_KNOWN
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none found (no nvidia-smi)"
    found = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    return found if done.returncode == 0 and found else "none found"
