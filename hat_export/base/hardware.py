"""What a timing hangs on besides the software: processor, clock, load, pinning, accelerator."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

#: Instruction sets that kernels are chosen by, as Linux names them (x86-64 and Arm).
RELEVANT_FLAGS = (
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

NOT_KNOWN = "not known"


def hardware() -> dict[str, Any]:
    """Facts by name; what the system does not tell is ``not known``."""
    info = _text("/proc/cpuinfo")
    flags = set(_field(info, ("flags", "Features")).split())
    return {
        "cpu_flags": " ".join(flag for flag in RELEVANT_FLAGS if flag in flags) or NOT_KNOWN,
        "virtual_machine": ("yes" if "hypervisor" in flags else "no") if flags else NOT_KNOWN,
        "frequency_mhz": _field(info, ("cpu MHz",)) or NOT_KNOWN,
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
        or NOT_KNOWN,
        "cpu_quota": _text("/sys/fs/cgroup/cpu.max").strip() or NOT_KNOWN,
        "affinity": _affinity(),
        "thread_variables": _variables(),
        "load_averages": _loads(),
        "memory_bytes": _memory(),
        "gpu": _gpu(),
    }


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _field(info: str, names: tuple[str, ...]) -> str:
    for line in info.splitlines():
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


def _variables() -> str:
    found = [f"{name}={os.environ[name]}" for name in THREAD_VARIABLES if name in os.environ]
    return " ".join(found) or "none set"


def _loads() -> str:
    if not hasattr(os, "getloadavg"):
        return NOT_KNOWN
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


def _memory() -> int | str:
    value = _field(_text("/proc/meminfo"), ("MemTotal",))
    return 1024 * int(value.split()[0]) if value else NOT_KNOWN


def _gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "none found (no nvidia-smi)"
    found = "; ".join(line.strip() for line in done.stdout.splitlines() if line.strip())
    return found if done.returncode == 0 and found else "none found"
