"""Facts about the machine: read where they are, named as unknown where they aren't."""

from __future__ import annotations

import subprocess

import pytest

from hat_export.base import machine
from hat_export.base.machine import peak_memory

FILES = {
    "/proc/cpuinfo": "model name\t: Some CPU\n"
    "flags\t: fpu avx2 fma hypervisor\n"
    "cpu MHz\t\t: 2600.000\n",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
    "/proc/self/status": "VmHWM:\t      30 kB\nRssAnon:\t      20 kB\n",
    "/proc/meminfo": "MemTotal:       1000 kB\n",
}


def test_what_the_system_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: FILES.get(path, ""))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    def smi(*_, **__) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, "H100, 580.1, 1980 MHz\n", "")

    monkeypatch.setattr(machine.subprocess, "run", smi)
    found = machine.hardware()
    assert found["cpu_flags"] == "fma avx2"
    assert found["virtual_machine"] == "yes"
    assert found["frequency_mhz"] == "2600.000"
    assert found["governor"] == "performance"
    assert found["memory_bytes"] == 1_024_000
    assert "OMP_NUM_THREADS=3" in found["thread_variables"]
    assert found["gpu"] == "H100, 580.1, 1980 MHz"
    assert machine.cpu_features() == {"avx2"}
    assert machine.describe_machine()["cpu"] == "Some CPU"
    assert machine.private_memory() == 20_480


def test_what_it_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_text", lambda path: "")

    def missing(*_, **__) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine.subprocess, "run", missing)
    found = machine.hardware()
    unknown = ("cpu_flags", "virtual_machine", "frequency_mhz", "governor", "memory_bytes")
    assert {found[name] for name in unknown} == {machine.NOT_KNOWN}
    assert found["gpu"] == "none found (no nvidia-smi)"
    assert machine.cpu_features() == frozenset()
    assert machine.private_memory() is None
    peak = machine.peak_memory()  # by another way
    assert peak is not None
    assert peak > 10_000_000


def test_peak_memory_never_falls() -> None:
    before = peak_memory()
    assert before is not None
    block = bytearray(20_000_000)
    block[::4096] = b"x" * len(block[::4096])
    after = peak_memory()
    assert after is not None
    assert after >= before > 10_000_000
