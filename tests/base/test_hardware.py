"""Facts about the machine: read where they are, named as unknown where they aren't."""

from __future__ import annotations

import subprocess

import pytest

from hat_export.base import hardware
from hat_export.base.machine import peak_memory

FILES = {
    "/proc/cpuinfo": "flags\t: fpu avx2 fma hypervisor\ncpu MHz\t\t: 2600.000\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "/proc/meminfo": "MemTotal:       1000 kB\n",
}


def test_what_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_text", lambda path: FILES.get(path, ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def smi(*_, **__) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "H100, 580.1, 1980 MHz\n", "")

    monkeypatch.setattr(hardware.subprocess, "run", smi)
    found = hardware.hardware()
    assert found["cpu_flags"] == "fma avx2"
    assert found["virtual_machine"] == "yes"
    assert found["frequency_mhz"] == "2600.000"
    assert found["governor"] == "performance"
    assert found["memory_bytes"] == 1_024_000
    assert "OMP_NUM_THREADS=3" in found["thread_variables"]
    assert found["gpu"] == "H100, 580.1, 1980 MHz"


def test_what_it_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_text", lambda path: "")

    def missing(*_, **__) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(hardware.subprocess, "run", missing)
    found = hardware.hardware()
    unknown = ("cpu_flags", "virtual_machine", "frequency_mhz", "governor", "memory_bytes")
    assert {found[name] for name in unknown} == {hardware.NOT_KNOWN}
    assert found["gpu"] == "none found (no nvidia-smi)"


def test_peak_memory_never_falls() -> None:
    before = peak_memory()
    assert before is not None
    block = bytearray(20_000_000)
    block[::4096] = b"x" * len(block[::4096])
    after = peak_memory()
    assert after is not None
    assert after >= before > 10_000_000
