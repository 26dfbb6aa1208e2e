"""The encoders' ONNX Runtime operators against float64, on every instruction set here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from hat_export.errors import BackendUnavailableError, InputError
from hat_export.export.onnx_export import export_onnx
from hat_export.export.panels import from_panels, to_panels
from hat_export.export.swin import attention_bias, window_order
from hat_export.kernels import alignment_cpu, operators
from operator_runs import FAILED, INVALID, exact_gelu, open_operator, operator_model, path, run

__all__ = ["path"]

#: What ONNX Runtime raises for a model that it can't load.
REFUSED = (
    *FAILED,
    onnxruntime.capi.onnxruntime_pybind11_state.Fail,
    onnxruntime.capi.onnxruntime_pybind11_state.InvalidGraph,
)
#: Logits of a few units and sums of up to 64 products: float32 rounding gives about 1e-6.
TOLERANCE = 3e-6


def attention(qkv: np.ndarray, bias: np.ndarray, heads: int, logit_bias: np.ndarray) -> np.ndarray:
    """[items, tokens, width] in float64; ``logit_bias`` broadcasts to [items, heads, ...]."""
    items, tokens, triple = qkv.shape
    head_dim = triple // 3 // heads
    parts = (qkv.astype(np.float64) + bias).reshape(items, tokens, 3, heads, head_dim)
    query, key, value = parts.transpose(2, 0, 3, 1, 4)
    logits = query @ key.swapaxes(-1, -2) / np.sqrt(head_dim) + logit_bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ value
    return mixed.transpose(0, 2, 1, 3).reshape(items, tokens, triple // 3)


def window_attention(
    qkv: np.ndarray, bias: np.ndarray, table: np.ndarray, side: int, window: int, shift: int
) -> np.ndarray:
    """As the standard graph has it: tokens brought into window order, one bias per window."""
    items, tokens, triple = qkv.shape
    heads, area = table.shape[1], window * window
    order = window_order(side, window, shift)
    windows = tokens // area
    both = attention_bias(table, side, window, shift).reshape(-1, heads, area, area)
    both = np.tile(np.broadcast_to(both, (windows, heads, area, area)), (items, 1, 1, 1))
    mixed = attention(qkv[:, order].reshape(items * windows, area, triple), bias, heads, both)
    result = np.empty((items, tokens, triple // 3))
    result[:, order] = mixed.reshape(items, tokens, triple // 3)
    return result


WINDOWS = [
    # items, side, window, shift, heads, head_dim
    (2, 14, 7, 3, 4, 32),
    (1, 14, 7, 0, 2, 32),
    (3, 7, 7, 0, 3, 32),
    (1, 8, 4, 2, 2, 16),
    (2, 8, 2, 1, 1, 24),
    (1, 12, 3, 1, 5, 7),
    (1, 24, 12, 6, 2, 32),
    (1, 4, 1, 0, 2, 8),
    (0, 14, 7, 3, 4, 32),
]


@pytest.mark.parametrize("sizes", WINDOWS)
def test_window_attention(path: str, sizes: Sequence[int]) -> None:
    items, side, window, shift, heads, head_dim = sizes
    random = np.random.default_rng(side * window + shift)
    qkv = random.standard_normal((items, side * side, 3 * heads * head_dim), np.float32)
    bias = random.standard_normal(3 * heads * head_dim, np.float32)
    table = random.standard_normal(((2 * window - 1) ** 2, heads), np.float32)
    feed = {
        "qkv": qkv,
        "qkv_bias": bias,
        "position_bias": attention_bias(table, side, window, 0)[0],
    }
    attributes = {"heads": heads, "window": window, "shift": shift}
    found = run("WindowAttention", feed, **attributes)[0]
    expected = window_attention(qkv, bias, table, side, window, shift)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    # Each head of each window is computed by itself: threads change no bit.
    np.testing.assert_array_equal(run("WindowAttention", feed, threads=3, **attributes)[0], found)


@pytest.mark.parametrize(
    ("captions", "words", "heads", "head_dim"),
    [(3, 16, 4, 64), (2, 1, 2, 8), (1, 100, 3, 64), (5, 17, 1, 20), (0, 9, 2, 16), (1, 130, 2, 16)],
)
def test_masked_attention(path: str, captions: int, words: int, heads: int, head_dim: int) -> None:
    random = np.random.default_rng(words)
    qkv = random.standard_normal((captions, words, 3 * heads * head_dim), np.float32)
    bias = random.standard_normal(3 * heads * head_dim, np.float32)
    mask = (random.random((captions, words)) < 0.7).astype(np.int64)
    mask[:, 0] = 1
    feed = {"qkv": qkv, "qkv_bias": bias, "attention_mask": mask}
    found = run("MaskedAttention", feed, heads=heads)[0]
    expected = attention(qkv, bias, heads, -10000.0 * (1 - mask)[:, None, None, :])
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_large_logits_neither_overflow_nor_lose_the_winner(path: str) -> None:
    qkv = np.zeros((1, 4, 3 * 8), np.float32)
    qkv[0, :, :8] = 200.0
    qkv[0, 2, 8:16] = 200.0
    qkv[0, :, 16:] = np.arange(4)[:, None]
    mask = np.ones((1, 4), np.int64)
    feed = {"qkv": qkv, "qkv_bias": np.zeros(24, np.float32), "attention_mask": mask}
    np.testing.assert_array_equal(run("MaskedAttention", feed, heads=1)[0], np.full((1, 4, 8), 2.0))


def test_what_the_shift_separates_gets_no_weight_at_all(path: str) -> None:
    """Not even a denormal one: those make every product with them slow on some processors."""
    side, window, shift, width = 4, 4, 1, 16
    qkv = np.zeros((1, side * side, 3 * width), np.float32)
    # One window, whose last row came from the top: values there, seen from elsewhere, are nothing.
    qkv[0, :side, 2 * width :] = 1e30
    feed = {
        "qkv": qkv,
        "qkv_bias": np.zeros(3 * width, np.float32),
        "position_bias": np.zeros((1, window**2, window**2), np.float32),
    }
    found = run("WindowAttention", feed, heads=1, window=window, shift=shift)[0]
    assert (found[0, :side] > 1e29).all()
    np.testing.assert_array_equal(found[0, side:], 0)


def test_nan_stays_nan(path: str) -> None:
    qkv = np.ones((2, 5, 3 * 8), np.float32)
    qkv[1, 3] = np.nan
    mask = np.ones((2, 5), np.int64)
    feed = {"qkv": qkv, "qkv_bias": np.zeros(24, np.float32), "attention_mask": mask}
    found = run("MaskedAttention", feed, heads=1)[0]
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("width", [1, 7, 16, 100, 768])
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_add_layer_norm(path: str, width: int, offset: float) -> None:
    random = np.random.default_rng(width)
    shape = (3, 5, width)
    branch, stream = (random.standard_normal(shape, np.float32) for _ in range(2))
    gamma, beta, bias = (random.standard_normal(width, np.float32) for _ in range(3))
    stream += np.float32(offset)
    feed = {"branch": branch, "stream": stream, "gamma": gamma, "beta": beta, "bias": bias}
    normed, total = run("AddLayerNorm", feed, outputs=2, epsilon=1e-5)
    np.testing.assert_allclose(
        total, branch.astype(np.float64) + stream + bias, rtol=2e-7, atol=5e-7
    )
    exact = total.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5) * gamma + beta
    # Differences from the mean are exact to a rounding of the mean itself.
    slack = np.spacing(np.float32(offset + 1)) / np.sqrt(np.square(centred).mean(-1).min() + 1e-5)
    np.testing.assert_allclose(normed, expected, rtol=0, atol=1e-5 + 4 * slack)


#: Rows, depth, columns: below, at and over the sizes of tiles, of blocks of depth and of panels.
PRODUCTS = [
    (1, 1, 1),
    (5, 3, 70),
    (6, 128, 64),
    (7, 129, 63),
    (13, 300, 192),
    (289, 40, 65),
    (50, 257, 16),
    (0, 8, 8),
]


def linear(x: np.ndarray, weight: np.ndarray, *bias: np.ndarray, **attributes: Any) -> np.ndarray:
    """By the operator."""
    feed = {"x": x, "weight": to_panels(weight)}
    if bias:
        feed["bias"] = bias[0]
    return run("Linear", feed, columns=len(weight), **({"gelu": 0} | attributes))[0]


@pytest.mark.parametrize("sizes", PRODUCTS)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(path: str, sizes: tuple[int, int, int], gelu: bool, biased: bool) -> None:
    rows, depth, columns = sizes
    random = np.random.default_rng(rows * depth + columns)
    x = random.standard_normal((rows, depth), np.float32)
    weight = random.standard_normal((columns, depth), np.float32) / np.float32(depth**0.5)
    bias = [random.standard_normal(columns, np.float32)] if biased else []
    found = linear(x, weight, *bias, gelu=int(gelu))
    exact = x.astype(np.float64) @ weight.T.astype(np.float64) + (bias[0] if bias else 0.0)
    if gelu:
        exact = exact_gelu(exact)
    # Roundings of a chain of sums go up and down: they add up as the root of their number.
    sizes_summed = np.abs(x) @ np.abs(weight).T + (np.abs(bias[0]) if bias else 0.0)
    assert (np.abs(found - exact) <= 2.0**-24 * math.sqrt(depth + 9) * sizes_summed).all()
    assert found.shape == (rows, columns)
    # An element is one chain of multiply-adds: neither threads nor its neighbours change a bit.
    np.testing.assert_array_equal(linear(x, weight, *bias, gelu=int(gelu), threads=3), found)
    np.testing.assert_array_equal(linear(x[:1], weight, *bias, gelu=int(gelu)), found[:1])


def test_gelu_everywhere(path: str) -> None:
    x = np.concatenate([np.linspace(-14, 14, 20001), [-1e20, -200, -0.0, 1e-30, 200, 1e20]])
    x = x.astype(np.float32)[:, None]
    found = linear(x, np.ones((1, 1), np.float32), gelu=1)
    assert np.abs(found - exact_gelu(x.astype(np.float64)) <= 2.5e-7 * np.abs(x)).all()
    x[3] = np.nan
    assert np.isnan(linear(x, np.ones((1, 1), np.float32), gelu=1)[:, 0]).nonzero()[0].tolist() == [
        3
    ]


@pytest.mark.parametrize("shape", [(64, 3), (65, 7), (1, 1), (128, 2)])
def test_panels_hold_the_weight(shape: tuple[int, int]) -> None:
    weight = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    panels = to_panels(weight)
    np.testing.assert_array_equal(from_panels(panels, shape[0]), weight)
    assert panels.shape == (-(-shape[0] // 64), shape[1], 64)
    assert panels[0, 1 % shape[1], 0] == weight[0, 1 % shape[1]]


def test_wrong_inputs_of_a_linear_layer_are_named() -> None:
    x, weight = np.zeros((2, 3, 8), np.float32), np.zeros((5, 8), np.float32)
    assert linear(x, weight).shape == (2, 3, 5)
    with pytest.raises(INVALID, match=r"weight: expected the shape \[1, 7, 64\]"):
        linear(x[..., :7], weight)
    with pytest.raises(INVALID, match=r"bias: expected the shape \[5\]"):
        linear(x, weight, np.zeros(4, np.float32))
    with pytest.raises(FAILED, match="attribute gelu: expected an integer from 0 to 1, got 2"):
        linear(x, weight, gelu=2)


def test_wrong_inputs_are_named() -> None:
    qkv = np.zeros((1, 16, 48), np.float32)
    feed = {
        "qkv": qkv,
        "qkv_bias": np.zeros(48, np.float32),
        "position_bias": np.zeros((2, 4, 4), np.float32),
    }
    good = {"heads": 2, "window": 2, "shift": 1}
    assert run("WindowAttention", feed, **good)[0].shape == (1, 16, 16)
    with pytest.raises(INVALID, match=r"qkv: expected \[items, tokens, 3 \* 2 heads"):
        run("WindowAttention", feed | {"qkv": qkv[..., :-1]}, **good)
    with pytest.raises(INVALID, match="whole windows of 2, got 15"):
        run("WindowAttention", feed | {"qkv": qkv[:, :15]}, **good)
    with pytest.raises(INVALID, match="qkv_bias: expected the shape"):
        run("WindowAttention", feed | {"qkv_bias": np.zeros(3, np.float32)}, **good)
    with pytest.raises(INVALID, match="position_bias: expected the shape"):
        run("WindowAttention", feed | {"position_bias": np.zeros((1, 4, 4), np.float32)}, **good)
    with pytest.raises(FAILED, match=r"attribute shift: expected an integer from 0 to 1, got 2"):
        run("WindowAttention", feed, **(good | {"shift": 2}))
    with pytest.raises(FAILED, match=r"attribute heads: .*missing"):
        run("WindowAttention", feed, window=2, shift=1)
    masked = {"qkv": qkv, "qkv_bias": feed["qkv_bias"], "attention_mask": np.ones((1, 3), int)}
    with pytest.raises(INVALID, match="attention_mask: expected the shape"):
        run("MaskedAttention", masked, heads=2)


def masked_attention() -> tuple[dict[str, np.ndarray], onnx.ModelProto]:
    """An operator's inputs, and a model of it."""
    feed = {
        "qkv": np.random.default_rng(7).standard_normal((3, 5, 48), np.float32),
        "qkv_bias": np.zeros(48, np.float32),
        "attention_mask": np.ones((3, 5), np.int64),
    }
    return feed, operator_model("MaskedAttention", feed, heads=2)


def test_an_input_of_another_type_is_refused() -> None:
    _, model = masked_attention()
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    with pytest.raises(REFUSED, match=r"tensor\(double\)"):
        open_operator(model)


def test_the_model_needs_the_library() -> None:
    _, model = masked_attention()
    open_operator(model)
    with pytest.raises(REFUSED, match="MaskedAttention"):
        open_operator(model, library=False)


def test_sessions_come_and_go() -> None:
    """The library is unloaded with its last session and works when it is loaded again."""
    feed, model = masked_attention()
    expected = run("MaskedAttention", feed, heads=2)[0].tobytes()
    for _ in range(3):
        first, second = open_operator(model), open_operator(model)
        assert first.run(None, feed)[0].tobytes() == expected
        del first
        assert second.run(None, feed)[0].tobytes() == expected
        del second


def test_a_missing_library_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv(alignment_cpu.LIBRARY_VARIABLE, str(tmp_path / "libhat_alignment.so"))
    with pytest.raises(BackendUnavailableError, match=r"libhat_operators\.so is missing"):
        operators.library_path()


def test_packed_export_is_fused_and_equal(tmp_path: Any, tiny_checkpoint: Any) -> None:
    """The export itself compares with PyTorch; here that every layer is one operator."""
    bundle = export_onnx(tiny_checkpoint, tmp_path / "out", attention="packed", require_fused=True)
    image, text = (bundle.manifest.graphs[name] for name in ("image", "text"))
    assert (image.attention_fused, text.attention_fused) == (10, 4)
    # 7 nodes a block, and what lies between: nothing is reshaped or gathered for attention.
    assert image.nodes <= 7 * 10 + 32
    assert text.nodes <= 7 * 4 + 13


def test_packed_export_has_no_low_precision(tmp_path: Any, tiny_checkpoint: Any) -> None:
    with pytest.raises(InputError, match="no fp16 for ONNX Runtime on a CPU"):
        export_onnx(tiny_checkpoint, tmp_path / "out", attention="packed", precision="fp16")
    assert not (tmp_path / "out").exists()
