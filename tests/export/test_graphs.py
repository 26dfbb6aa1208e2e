"""The ONNX graphs against PyTorch and the golden data, piece by piece."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.models.swin_transformer import SwinTransformerBlock

from hat_export.export.alignment import alignment_graph
from hat_export.export.pipelines import build_graph
from hat_export.export.swin import attention_bias, window_order
from hat_export.model.checkpoint import load_hat
from hat_export.spec import ModelSpec
from hat_reference_inputs import KERNEL_CASES, kernel_case


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)


@pytest.mark.parametrize(("side", "window"), [(8, 4), (14, 7), (6, 2), (6, 3)])
def test_window_order_and_bias_equal_timms_block(side: int, window: int) -> None:
    """One shifted block's attention, timm's way and by permutation and one constant."""
    heads, dim, shift = 2, 8, window // 2
    torch.manual_seed(side)
    block = SwinTransformerBlock(
        dim, (side, side), num_heads=heads, window_size=window, shift_size=shift
    ).eval()
    torch.nn.init.normal_(block.attn.relative_position_bias_table)
    tokens = torch.randn(1, side, side, dim)
    with torch.inference_mode():
        expected = block._attn(tokens)[0].reshape(-1, dim).numpy()
        order = window_order(side, window, shift)
        rows = tokens.reshape(-1, dim)[torch.from_numpy(order)]
        windows = rows.reshape(-1, window * window, dim)
        qkv = block.attn.qkv(windows).reshape(len(windows), -1, 3, heads, dim // heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        table = block.attn.relative_position_bias_table.numpy()
        bias = torch.from_numpy(attention_bias(table, side, window, shift))
        bias = bias.reshape(len(windows), heads, *bias.shape[2:])
        logits = query @ key.transpose(2, 3) * (dim // heads) ** -0.5 + bias
        mixed = (logits.softmax(-1) @ value).transpose(1, 2).reshape(-1, dim)
        ours = np.empty_like(expected)
        ours[order] = block.attn.proj(mixed).numpy()
    # float32, values of order 1: a wrong mask or permutation moves them by far more
    np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_window_order_is_a_permutation() -> None:
    order = window_order(56, 7, 3)
    assert sorted(order.tolist()) == list(range(56 * 56))
    assert order[0] == 3 * 56 + 3


@pytest.mark.parametrize("form", ["onnx", "decomposed"])
def test_image_graph_equals_pytorch(tiny_checkpoint, form) -> None:
    loaded = load_hat(tiny_checkpoint)
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    pixels = np.random.default_rng(0).standard_normal((3, 3, 64, 64), np.float32)
    outputs = run(build_graph("image", loaded.spec, weights, form)[0], {"pixel_values": pixels})
    with torch.inference_mode():
        expected = [
            *loaded.model.encode_images(torch.from_numpy(pixels)),
            *loaded.model.image_stages(torch.from_numpy(pixels))[:2],
        ]
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=5e-5)


@pytest.mark.parametrize("form", ["onnx", "decomposed"])
def test_text_graph_equals_pytorch(tiny_checkpoint, form) -> None:
    loaded = load_hat(tiny_checkpoint)
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    random = np.random.default_rng(0)
    lengths = np.array([13, 1, 2, 7])
    mask = (np.arange(13)[None] < lengths[:, None]).astype(np.int64)
    ids = random.integers(0, loaded.spec.vocab_size, mask.shape) * mask
    feed = {"input_ids": ids, "attention_mask": mask}
    outputs = run(build_graph("text", loaded.spec, weights, form)[0], feed)
    with torch.inference_mode():
        expected = loaded.model.encode_texts(torch.from_numpy(ids), torch.from_numpy(mask))
    real = mask.astype(bool)
    for ours, theirs in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(ours[real], theirs.numpy()[real], atol=5e-5)


@pytest.mark.parametrize("direction", ["i2t", "t2i"])
@pytest.mark.parametrize("name", KERNEL_CASES)
def test_alignment_graph_equals_golden(golden_kernel, name, direction) -> None:
    """The graph adds three levels; the same features at each give three times the score."""
    regions, words, lengths, softmax_lambda = kernel_case(name)
    spec = ModelSpec(dim=regions.shape[2], direction=direction, softmax_lambda=softmax_lambda)
    graph = alignment_graph(spec)
    mask = (np.arange(words.shape[1])[None] < lengths[:, None]).astype(np.int64)
    feed = {f"image_level{level}": regions for level in (1, 2, 3)}
    feed |= {f"text_level{level}": words for level in (1, 2, 3)}
    model = graph.model({})
    for value in model.graph.input:  # the golden cases have region counts of their own
        if value.name.startswith("image"):
            value.type.tensor_type.shape.dim[1].dim_param = "regions"
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    scores = session.run(["scores"], feed | {"attention_mask": mask})[0]
    assert np.isfinite(scores).all()
    expected = golden_kernel[f"{name}/{direction}_f64"]
    known = ~np.isnan(expected)  # the official t2i can't score a caption of one word
    # golden/README.md: 2e-6 a level, 5e-6 at lambda 100
    tolerance = 3 * (5e-6 if name == "lambda_100" else 2e-6)
    np.testing.assert_allclose(scores[known], 3 * expected[known], rtol=0, atol=tolerance)


def test_node_names_say_the_layer(tiny_bundle) -> None:
    model = onnx.load(tiny_bundle / "image.onnx")
    names = [node.name for node in model.graph.node if node.op_type == "Attention"]
    assert names[0] == "vit_model.layers.0.blocks.0/Attention"
    assert len(names) == 10


@pytest.mark.parametrize(("graph", "epsilon"), [("image", 1e-5), ("text", 1e-12)])
def test_layer_norms_have_the_published_epsilon(tiny_bundle, graph, epsilon) -> None:
    """Another one is within every tolerance on a small random model, and not on a trained one."""
    nodes = onnx.load(tiny_bundle / f"{graph}.onnx").graph.node
    found = [item.f for node in nodes for item in node.attribute if item.name == "epsilon"]
    assert found
    np.testing.assert_allclose(found, epsilon, rtol=1e-6)


def test_batch_and_length_are_dynamic(tiny_bundle) -> None:
    for name, dynamic in (("image", {"images"}), ("text", {"captions", "words"})):
        model = onnx.load(tiny_bundle / f"{name}.onnx")
        for value in (*model.graph.input, *model.graph.output):
            named = {dim.dim_param for dim in value.type.tensor_type.shape.dim} - {""}
            assert named == dynamic
