"""What the alignment engine's types cost: its graph in TF32 and with fp16 products, on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from jaxtyping import Float32
from onnx import TensorProto, helper, numpy_helper

import hat_export
from hat_export.bundle.bundle import IMAGE_OUTPUTS, TEXT_OUTPUTS
from hat_export.data.karpathy import read_karpathy
from hat_export.export.alignment import alignment_graph
from hat_export.parity.comparison import compare_scores
from hat_export.parity.statistics import RECALLS, deltas
from hat_export.runtime.backends.emulation_backend import emulated
from hat_export.runtime.evaluate import encode_captions
from hat_export.score.alignment import feature_blocks
from hat_export.score.features import ImageFeatures, TextFeatures
from hat_export.tensorrt.lower import fp16_matmuls
from places import DEMO, MODEL


def rounded_to_tf32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph whose matrix products round their operands to TF32's ten mantissa bits.

    By Veltkamp's splitting: with c = (2^13 + 1) x, c - (c - x) is x rounded to 24 - 13 significant
    bits. Sums within a product stay float32, as on tensor cores.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    factor = numpy_helper.from_array(np.array(2**13 + 1, np.float32), "tf32.factor")
    result.graph.initializer.append(factor)
    nodes: list[onnx.NodeProto] = []
    for node in result.graph.node:
        if node.op_type == "MatMul":
            for position, value in enumerate(list(node.input)):
                at = f"{node.name}/tf32.{position}"
                nodes += [
                    helper.make_node("Mul", [value, factor.name], [f"{at}/scaled"]),
                    helper.make_node("Sub", [f"{at}/scaled", value], [f"{at}/low"]),
                    helper.make_node("Sub", [f"{at}/scaled", f"{at}/low"], [at]),
                ]
                node.input[position] = at
        nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def test_rounding_to_tf32_keeps_ten_bits() -> None:
    """Against the rounding of the bits themselves."""
    values = np.random.default_rng(0).normal(0, 100, (64, 64)).astype(np.float32)
    bits = values.view(np.uint32)
    # Half a unit of the last kept bit is added and the rest cut off; values half-way are left out.
    settled = (bits & 0x1FFF) != 0x1000
    expected = ((bits + 0x1000) & 0xFFFFE000).view(np.float32)
    x, one, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [64, 64])
        for name in ("x", "one", "y")
    )
    product = helper.make_node("MatMul", ["x", "one"], ["y"], name="product")
    graph = helper.make_graph([product], "product", [x, one], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    session = onnxruntime.InferenceSession(rounded_to_tf32(model).SerializeToString())
    (found,) = session.run(None, {"x": values, "one": np.eye(64, dtype=np.float32)})
    np.testing.assert_array_equal(found[settled], expected[settled])


@pytest.fixture(scope="module")
def features(exported: Callable[..., Path]) -> tuple[ImageFeatures, TextFeatures]:
    """Those of fp16 encoders of the demo model: 1,000 drawings, 5,000 captions in dataset order."""
    folder = exported("demo", precision="fp16")
    dataset = read_karpathy(DEMO / "emojicap", "test")
    with hat_export.open_bundle(folder, "emulation", threads=2) as session:
        pictures = list(dataset.images())
        images = ImageFeatures.concatenate(
            [session.encode_images(pictures[i : i + 50]) for i in range(0, len(pictures), 50)]
        )
        places, parts = zip(*encode_captions(session, dataset.captions, 250), strict=True)
    texts, order = TextFeatures.concatenate(parts), np.argsort(np.concatenate(places))
    return images, TextFeatures(tuple(level[order] for level in texts.levels), texts.lengths[order])


def scores(
    model: onnx.ModelProto, features: tuple[ImageFeatures, TextFeatures]
) -> Float32[np.ndarray, "images captions"]:
    """All pairs by an alignment graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    images, texts = features
    found = np.empty((len(images), len(texts)), np.float32)
    for block in feature_blocks(images, texts):
        feed = dict(zip(IMAGE_OUTPUTS, block.images.levels, strict=True))
        feed |= dict(zip(TEXT_OUTPUTS, block.texts.levels, strict=True))
        feed["attention_mask"] = block.texts.mask
        found[block.tile.rows, block.tile.columns] = session.run(["scores"], feed)[0]
    return found


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    """The alignment graph in float32."""
    with hat_export.load(MODEL, threads=2) as session:
        return alignment_graph(session.spec).model({})


@pytest.fixture(scope="module")
def reference(
    graph: onnx.ModelProto, features: tuple[ImageFeatures, TextFeatures]
) -> Float32[np.ndarray, "images captions"]:
    """Its scores."""
    return scores(graph, features)


@pytest.mark.full
@pytest.mark.parametrize("variant", ["tf32", "fp16 products"])
def test_the_alignment_graph_keeps_recall(
    variant: str,
    graph: onnx.ModelProto,
    features: tuple[ImageFeatures, TextFeatures],
    reference: Float32[np.ndarray, "images captions"],
) -> None:
    """Beside encoders of low precision products may use TF32; on sm_75 they are in fp16.

    Both variants score the same features, so that what they lose is the alignment's alone; the
    reference is the same graph in float32. The largest observed drop that passes is an image of the
    thousand, as for fp16 encoders; the interval of the sum excludes a fifth of a point a recall.
    """
    dataset = read_karpathy(DEMO / "emojicap", "test")
    lowered = {
        "tf32": rounded_to_tf32,
        "fp16 products": lambda m: emulated(fp16_matmuls(m)(m).model),
    }
    found = compare_scores(reference, scores(lowered[variant](graph), features), dataset.owners)
    changes = deltas(found)
    shown = ", ".join(f"{name} {changes[name].difference:+.2f}" for name in RECALLS)
    rsum = changes["rsum"]
    print(
        f"{variant}: {shown}, rsum {rsum.difference:+.2f} ({rsum.low:+.2f} to {rsum.high:+.2f}); "
        f"scores differ by up to {found.score_difference:.2g}, {len(found.changed)} ranks changed"
    )
    assert found.changed, "nothing was rounded"
    assert min(changes[name].difference for name in RECALLS) >= -0.1 - 1e-6
    assert rsum.low >= -1.2
