"""Kernels built with sanitizers: random shapes from C++, and the project's own tests of them.

``tests/native/stress.cpp`` runs every kernel on every instruction path that this CPU has, with
AddressSanitizer and UndefinedBehaviorSanitizer, and with ThreadSanitizer. The tests then run ONNX
Runtime with the operators' library built with AddressSanitizer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ALIGNMENT = ROOT / "kernels" / "alignment"
OPERATORS = ROOT / "kernels" / "operators"
STRESS = ROOT / "tests" / "native" / "stress.cpp"

#: Sanitizers that go together -> the compiler's option.
SANITIZERS = {
    "ASan + UBSan": "-fsanitize=address,undefined -fno-sanitize-recover=all",
    "TSan": "-fsanitize=thread",
}
#: Tests that run the libraries.
TESTS = (
    "tests/kernels/test_alignment_cpu.py",
    "tests/kernels/test_encoder_operators.py",
    "tests/kernels/test_int8_linear.py",
)
FLAGS = "-std=c++20 -O1 -g -fno-omit-frame-pointer -ffp-contract=off -DHAT_ALIGNMENT_BUILD"
PATH_FLAGS = {"avx2": "-mavx2 -mfma", "avx512": "-mavx512f -mavx2 -mfma", "neon": ""}
#: Products of 8 bits on x86, each with the flags of its unit.
INT8_FLAGS = {
    "amx": "-mamx-tile -mamx-int8",
    "avx2": "-mavx2",
    "avxvnni": "-mavx2 -mavxvnni",
    "vnni": "-mavx512f -mavx512vnni",
}


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per sanitizer, kernel and path, and one of the tests."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        for name, flags in SANITIZERS.items():
            binary = build_stress(Path(folder), flags)
            rows += stress(binary, name, options.seed, options.shapes)
        rows.append(tests(Path(folder)))
    for row in rows:
        print(f"  {row}", flush=True)
    return rows


def build_stress(folder: Path, flags: str) -> Path:
    """Build the stress program; every source is part of it."""
    x86 = os.uname().machine in ("x86_64", "amd64")
    paths = ("avx2", "avx512") if x86 else ("neon",)
    define = "-DHAT_ALIGNMENT_BUILD_X86" if x86 else "-DHAT_ALIGNMENT_BUILD_NEON"
    sources = {
        STRESS: "",
        ALIGNMENT / "alignment.cpp": "",
        ALIGNMENT / "dispatch.cpp": "",
        ALIGNMENT / "kernel_scalar.cpp": "",
        OPERATORS / "int8_products.cpp": "",
        OPERATORS / "kernels_scalar.cpp": "",
    }
    for path in paths:
        sources[ALIGNMENT / f"kernel_{path}.cpp"] = PATH_FLAGS[path]
        sources[OPERATORS / f"kernels_{path}.cpp"] = PATH_FLAGS[path]
    if x86:
        for unit, own in INT8_FLAGS.items():
            sources[OPERATORS / f"int8_products_{unit}.cpp"] = own
    compiler = os.environ.get("CXX", "g++")

    def build(source: Path) -> Path:
        built = folder / f"{source.stem}.o"
        words = f"{compiler} {FLAGS} {define} {flags} {sources[source]} -c".split()
        subprocess.run([*words, str(source), "-o", str(built)], check=True)
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(build, sources))
    binary = folder / "stress"
    words = f"{compiler} {flags} -pthread".split()
    subprocess.run([*words, *map(str, objects), "-o", str(binary)], check=True)
    return binary


def stress(binary: Path, sanitizer: str, seed: int, shapes: int) -> list[dict[str, Any]]:
    """Run the stress program; a report of a sanitizer ends it."""
    done = subprocess.run(
        [str(binary), str(seed), str(shapes)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
    )
    rows: list[dict[str, Any]] = []
    for line in done.stdout.splitlines():
        kernel, path, count = line.split()
        row = {"sanitizer": sanitizer, "kernel": kernel, "path": path, "shapes": int(count)}
        rows.append(row | {"reports": []})
    if done.returncode:
        report = done.stderr.strip()[:2000]
        rows.append(
            {"sanitizer": sanitizer, "kernel": "", "path": "", "shapes": 0, "reports": [report]}
        )
    return rows


def tests(folder: Path) -> dict[str, Any]:
    """Run the tests of the kernels on libraries built with AddressSanitizer."""
    build = folder / "build"
    # CMake from the environment that this runs in, else the machine's.
    cmake = Path(sys.executable).with_name("cmake")
    program = str(cmake) if cmake.exists() else "cmake"
    flags = f"{SANITIZERS['ASan + UBSan']} -fno-omit-frame-pointer -g"
    subprocess.run(
        [program, "-S", str(ROOT), "-B", str(build), f"-DCMAKE_CXX_FLAGS={flags}"],
        check=True,
        capture_output=True,
    )
    subprocess.run([program, "--build", str(build)], check=True, capture_output=True)
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *TESTS],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ
        | {
            "LD_PRELOAD": " ".join(libraries),
            # Python keeps memory until the end; what matters is what the kernels touch.
            "ASAN_OPTIONS": "detect_leaks=0",
            "HAT_EXPORT_KERNEL_LIBRARY": str(build / "libhat_alignment.so"),
        },
    )
    text = done.stdout + done.stderr
    summary = next((line for line in reversed(done.stdout.splitlines()) if "passed" in line), "")
    reports = [line for line in text.splitlines() if "Sanitizer" in line or "runtime error" in line]
    if done.returncode and not reports:
        reports = [text[-1500:]]
    return {
        "sanitizer": "ASan + UBSan",
        "kernel": "tests in ONNX Runtime",
        "path": summary,
        "shapes": 0,
        "reports": reports,
    }
