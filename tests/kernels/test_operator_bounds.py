"""The operators read nothing behind the end of an input: weights may end where a mapped file does.

Each input in turn ends at the end of a page behind which nothing may be read. A process that reads
there dies, so the runs are in a process of their own.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hat_export.export.panels import to_int8_panels, to_panels
from hat_export.kernels import alignment_cpu
from operator_runs import PATHS, run
from places import SUPPORT

PAGE = 4096
PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS = 3, 0x22

#: Operator -> its inputs.
INPUTS = {
    "WindowAttention": ("qkv", "qkv_bias", "position_bias"),
    "MaskedAttention": ("qkv", "qkv_bias", "attention_mask"),
    "AddLayerNorm": ("branch", "stream", "gamma", "beta", "bias"),
    "Linear": ("x", "weight", "bias"),
    "Int8Linear": ("x", "weight", "scale", "totals", "bias"),
}


def at_the_end_of_a_page(array: np.ndarray) -> np.ndarray:
    """A copy behind whose last byte lies a page that can't be read."""
    system = ctypes.CDLL(None)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *[ctypes.c_int] * 3,
        ctypes.c_long,
    ]
    system.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = -(-array.nbytes // PAGE) * PAGE
    start = system.mmap(None, size + PAGE, PROT_READ_WRITE, MAP_PRIVATE_ANONYMOUS, -1, 0)
    assert system.mprotect(start + size, PAGE, 0) == 0
    place = (ctypes.c_char * array.nbytes).from_address(start + size - array.nbytes)
    copy = np.frombuffer(place, array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def run_guarded(kind: str, guarded: str) -> None:
    """The operator at sizes around the vectors' widths, one input before an unreadable page."""

    def values(*shape: int) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(shape, np.float32)

    feeds: list[tuple[dict[str, np.ndarray], int, dict[str, float]]] = []
    if kind == "WindowAttention":
        # Windows of 4 tokens have rows shorter than a vector.
        for side, window, heads, width in [
            (8, 2, 2, 16),
            (12, 3, 5, 7),
            (14, 7, 1, 32),
            (4, 1, 2, 8),
        ]:
            area = window * window
            feed = {
                "qkv": values(2, side * side, 3 * heads * width),
                "qkv_bias": values(3 * heads * width),
                "position_bias": values(heads, area, area),
            }
            feeds.append((feed, 1, {"heads": heads, "window": window, "shift": window // 2}))
    elif kind == "MaskedAttention":
        for words, heads, width in [(1, 2, 8), (17, 1, 20), (32, 2, 64)]:
            feed = {
                "qkv": values(3, words, 3 * heads * width),
                "qkv_bias": values(3 * heads * width),
            }
            feeds.append(
                (feed | {"attention_mask": np.ones((3, words), np.int64)}, 1, {"heads": heads})
            )
    elif kind == "Linear":
        for depth, columns in [(1, 1), (3, 70), (129, 64), (300, 33)]:
            feed = {"x": values(7, depth), "bias": values(columns)}
            feed["weight"] = to_panels(values(columns, depth))
            feed = {name: feed[name] for name in INPUTS[kind]}
            feeds.append((feed, 1, {"columns": columns, "gelu": 1}))
    elif kind == "Int8Linear":
        for rows, depth, columns in [(1, 1, 1), (7, 3, 70), (33, 129, 64), (17, 300, 33)]:
            weight = np.full((depth, columns), 3, np.int8)
            feed = {"x": values(rows, depth), "weight": to_int8_panels(weight)}
            feed |= {"scale": values(columns), "totals": weight.sum(0, dtype=np.int32)}
            feed["bias"] = values(columns)
            feeds.append((feed, 1, {"columns": columns, "gelu": 1, "largest_weight": 3}))
    else:
        for width in (1, 7, 16, 33, 100):
            feed = {name: values(width) for name in INPUTS[kind]}
            feed |= {"branch": values(3, 5, width), "stream": values(3, 5, width)}
            feeds.append((feed, 2, {"epsilon": 1e-5}))
    for feed, outputs, attributes in feeds:
        run(kind, feed | {guarded: at_the_end_of_a_page(feed[guarded])}, outputs, **attributes)


@pytest.mark.skipif(sys.platform != "linux", reason="page protection is asked for as Linux has it")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", INPUTS)
def test_nothing_is_read_behind_an_input(path: str, kind: str) -> None:
    if path not in alignment_cpu.available_paths():
        pytest.skip(f"this CPU has no {path}")
    folders = [str(Path(__file__).parent), str(SUPPORT)]
    script = f"import test_operator_bounds as t\nfor name in t.INPUTS[{kind!r}]:\n"
    script += f"    print(name, flush=True)\n    t.run_guarded({kind!r}, name)\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HAT_EXPORT_KERNEL_PATH": path, "PYTHONPATH": os.pathsep.join(folders)},
    )
    assert done.returncode == 0, f"last input: {done.stdout.split()[-1:]}\n{done.stderr[-500:]}"
