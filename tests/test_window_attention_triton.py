"""The Triton window attention kernel: its numerics, interpreted on the CPU, and its PTX.

Tolerances: fp32 is within the rounding of sums of 64 products; fp16 within that of weights and
values near 1 rounded to 11 bits.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hat_export.export.swin import attention_bias
from test_encoder_operators import window_attention

#: name -> images, side, window, shift, heads, head_dim
CASES = {
    "shifted": (2, 14, 7, 3, 2, 32),
    "whole": (1, 14, 7, 0, 2, 32),
    "one_window": (2, 7, 7, 0, 3, 32),
    "small": (1, 8, 2, 1, 2, 16),
    "none": (0, 14, 7, 3, 2, 32),
}
TOLERANCES = {"float32": 3e-6, "float16": 5e-3}


def inputs(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    images, side, window, shift, heads, head_dim = CASES[name]
    random = np.random.default_rng(side + shift)
    qkv = random.standard_normal((images, side * side, 3 * heads * head_dim), np.float32)
    bias = random.standard_normal(3 * heads * head_dim, np.float32)
    return qkv, bias, random.standard_normal(((2 * window - 1) ** 2, heads), np.float32)


def compute(device: str, name: str, data_type: str) -> np.ndarray:
    import torch

    from hat_export.kernels import window_attention_triton

    _, side, window, shift, heads, _ = CASES[name]
    qkv, bias, table = inputs(name)
    kind = getattr(torch, data_type)
    packed = torch.from_numpy(qkv).to(device, kind)
    mixed = torch.full((*qkv.shape[:2], qkv.shape[2] // 3), float("nan"), dtype=kind, device=device)
    window_attention_triton.launch(
        packed,
        torch.from_numpy(bias).to(device, kind),
        torch.from_numpy(attention_bias(table, side, window, 0)[0]).to(device),
        mixed,
        heads,
        window,
        shift,
    )
    result: np.ndarray = mixed.float().cpu().numpy()
    return result


def interpret(target: str) -> None:
    """Computes what the tests compare; runs in a process of its own."""
    found = {f"{n}/{t}": compute("cpu", n, t) for n in CASES for t in TOLERANCES}
    np.savez(target, **found)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What the interpreted kernel computes; Triton has to know before its first import."""
    pytest.importorskip("triton")
    target = tmp_path_factory.mktemp("interpreted") / "mixed.npz"
    code = f"import test_window_attention_triton as t; t.interpret({str(target)!r})"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here / "golden")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with np.load(target) as stored:
        return {name: stored[name] for name in stored.files}


def check(found: np.ndarray, name: str, data_type: str) -> None:
    _, side, window, shift, _, _ = CASES[name]
    qkv, bias, table = inputs(name)
    expected = window_attention(qkv, bias, table, side, window, shift)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCES[data_type])


@pytest.mark.parametrize("data_type", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_interpreted(interpreted: dict[str, np.ndarray], name: str, data_type: str) -> None:
    check(interpreted[f"{name}/{data_type}"], name, data_type)


@pytest.mark.gpu
@pytest.mark.parametrize("data_type", TOLERANCES)
@pytest.mark.parametrize("name", CASES)
def test_on_the_device(name: str, data_type: str) -> None:
    check(compute("cuda", name, data_type), name, data_type)


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("data_type", ["fp16", "bf16"])
def test_it_compiles_for_a_target(capability: int, data_type: str) -> None:
    pytest.importorskip("triton")
    from hat_export.kernels import window_attention_triton

    ptx = window_attention_triton.compile_ptx(capability, data_type, 7, 3, 32)
    assert f".target sm_{capability}" in ptx
    # Both products run on tensor cores, and nothing is spilled to local memory.
    assert ("wgmma" in ptx) or ("mma.sync" in ptx)
    assert ".local " not in ptx


def test_sizes_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("triton")
    import torch

    from hat_export.kernels import window_attention_triton

    qkv, bias, mixed = torch.zeros(1, 16, 96), torch.zeros(96), torch.zeros(1, 16, 32)
    table = torch.zeros(2, 9, 9)
    with pytest.raises(ValueError, match="no square of windows of 3"):
        window_attention_triton.launch(qkv, bias, table, mixed, 2, 3, 1)
    with pytest.raises(ValueError, match="position bias"):
        window_attention_triton.launch(qkv, bias, table, mixed, 2, 2, 1)
    with pytest.raises(ValueError, match="power of two from 16"):
        window_attention_triton.launch(qkv, bias, table, mixed, 4, 2, 1)
