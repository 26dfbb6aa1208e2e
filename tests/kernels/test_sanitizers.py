"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, on few random shapes.

``bench/attack/sanitizers.py`` does the same on thousands of shapes, with ThreadSanitizer too.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from places import ATTACK, on_path

SHAPES = 20


@pytest.fixture(scope="module")
def sanitizers():
    with on_path(ATTACK):
        import sanitizers

        return sanitizers


@pytest.fixture(scope="module")
def flags(sanitizers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Options of the compiler; skips where it has no sanitizers."""
    compiler = os.environ.get("CXX", "g++")
    chosen: str = sanitizers.SANITIZERS["ASan + UBSan"]
    probe = tmp_path_factory.mktemp("probe") / "probe"
    command = f"{compiler} {chosen} -x c++ - -o {probe}".split()
    try:
        subprocess.run(command, input=b"int main() {}", capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the C++ compiler has no AddressSanitizer and UndefinedBehaviorSanitizer")
    return chosen


def test_every_kernel_is_clean_on_random_shapes(sanitizers, flags: str, tmp_path: Path) -> None:
    binary = sanitizers.build_stress(tmp_path, flags)
    rows = sanitizers.stress(binary, "ASan + UBSan", 1, SHAPES)
    assert [row for row in rows if row["reports"]] == []
    tried = {row["kernel"].partition(":")[0] for row in rows if row["path"] == "scalar"}
    assert tried == {
        *("window_attention", "masked_attention", "add_layer_norm", "linear", "int8_linear"),
        "alignment",
    }
