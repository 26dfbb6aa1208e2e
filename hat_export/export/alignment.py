"""The alignment score as an ONNX graph of standard operators, in Gram form.

The same formula as :mod:`hat_export.model.alignment`; every axis but the feature width is dynamic.
"""

from __future__ import annotations

import numpy as np

from hat_export.export.graph import Dim, GraphBuilder
from hat_export.spec import COSINE_FLOOR, LEAKY_SLOPE, LEVELS, NORM_EPSILON, ModelSpec

#: Stands for minus infinity in logits that are at most lambda.
MASKED = -1e30


def alignment_graph(spec: ModelSpec) -> GraphBuilder:
    """``image_level*``, ``text_level*``, ``attention_mask`` to ``scores`` [images, captions].

    Args:
        spec: The architecture.
    """
    graph = GraphBuilder("alignment")
    images, texts, mask = _inputs(graph, spec)
    with graph.scope("alignment.mask"):
        real = graph.node("Cast", [mask], {"to": 1})
    level_scores = _level_i2t if spec.direction == "i2t" else _level_t2i
    scores = []
    for level, (regions, words) in enumerate(zip(images, texts, strict=True), start=1):
        with graph.scope(f"alignment.level{level}"):
            scores.append(level_scores(graph, regions, words, real, spec))
    with graph.scope("alignment.sum"):
        first, second, third = scores
        total = graph.node("Add", [graph.node("Add", [third, first]), second])
    graph.output(total, "scores", np.float32, ["images", "captions"])
    return graph


def _inputs(graph: GraphBuilder, spec: ModelSpec) -> tuple[list[str], list[str], str]:
    """Declares the features of images, those of captions, per level, and the attention mask."""
    names = range(1, LEVELS + 1)
    images = [
        graph.input(f"image_level{level}", np.float32, ["images", regions, spec.dim])
        for level, regions in zip(names, spec.level_regions, strict=True)
    ]
    shape: list[Dim] = ["captions", "words", spec.dim]
    texts = [graph.input(f"text_level{level}", np.float32, shape) for level in names]
    mask = graph.input("attention_mask", np.int64, ["captions", "words"])
    return images, texts, mask


def _dots(graph: GraphBuilder, regions: str, words: str, dim: int) -> str:
    """Word-region dot products [captions, words, images, regions] of one matrix product."""
    rows = graph.reshape(words, (-1, dim))
    columns = graph.transpose(graph.reshape(regions, (-1, dim)), (1, 0))
    product = graph.node("MatMul", [rows, columns])
    sizes = [graph.node("Shape", [value], {"start": 0, "end": 2}) for value in (words, regions)]
    shape = graph.node("Concat", sizes, {"axis": 0})
    return graph.node("Reshape", [product, shape])


def _leaky(graph: GraphBuilder, dots: str) -> str:
    return graph.node("LeakyRelu", [dots], {"alpha": LEAKY_SLOPE})


def _logits(graph: GraphBuilder, leaky: str, axis: int, spec: ModelSpec) -> str:
    """lambda * l / (|l| over an axis + 1e-8)."""
    norm = graph.node("ReduceL2", [leaky, graph.constant([axis])], {"keepdims": 1})
    norm = graph.node("Add", [norm, graph.constant(NORM_EPSILON, np.float32)])
    scaled = graph.node("Mul", [leaky, graph.constant(spec.softmax_lambda, np.float32)])
    return graph.node("Div", [scaled, norm])


def _sum(graph: GraphBuilder, value: str, axis: int) -> str:
    return graph.node("ReduceSum", [value, graph.constant([axis])], {"keepdims": 0})


def _norm(graph: GraphBuilder, vectors: str) -> str:
    return graph.node("ReduceL2", [vectors, graph.constant([-1])], {"keepdims": 0})


def _cosine(graph: GraphBuilder, inner: str, product: str) -> str:
    floored = graph.node("Max", [product, graph.constant(COSINE_FLOOR, np.float32)])
    return graph.node("Div", [inner, floored])


def _level_i2t(graph: GraphBuilder, regions: str, words: str, real: str, spec: ModelSpec) -> str:
    """Regions attend to words; no attended vector is formed."""
    dots = _dots(graph, regions, words, spec.dim)
    logits = _logits(graph, _leaky(graph, dots), 3, spec)
    row = graph.node("Unsqueeze", [real, graph.constant([2, 3])])
    away = graph.node("Sub", [graph.constant(1.0, np.float32), row])
    masked = graph.node("Mul", [away, graph.constant(MASKED, np.float32)])
    attention = graph.node("Softmax", [graph.node("Add", [logits, masked])], {"axis": 1})
    inner = _sum(graph, graph.node("Mul", [attention, dots]), 1)
    clean = graph.node("Mul", [words, graph.node("Unsqueeze", [real, graph.constant([2])])])
    gram = graph.node("MatMul", [clean, graph.transpose(clean, (0, 2, 1))])
    flat = graph.reshape(attention, (0, 0, -1))
    weighted = graph.node("Mul", [flat, graph.node("MatMul", [gram, flat])])
    shape = graph.node("Shape", [inner])
    squared = graph.node("Reshape", [_sum(graph, weighted, 1), shape])
    # Rounding can leave a tiny negative number where the attended vector is zero.
    size = graph.node("Sqrt", [graph.node("Relu", [squared])])
    cosine = _cosine(graph, inner, graph.node("Mul", [size, _norm(graph, regions)]))
    mean = graph.node("ReduceMean", [cosine, graph.constant([2])], {"keepdims": 0})
    return graph.transpose(mean, (1, 0))


def _level_t2i(graph: GraphBuilder, regions: str, words: str, real: str, spec: ModelSpec) -> str:
    """Words attend to regions."""
    # Words past a caption's length would change the norm: they are zeroed first.
    column = graph.node("Unsqueeze", [real, graph.constant([2])])
    clean = graph.node("Mul", [words, column])
    dots = _dots(graph, regions, clean, spec.dim)
    logits = _logits(graph, _leaky(graph, dots), 1, spec)
    attention = graph.node("Softmax", [logits], {"axis": 3})
    inner = _sum(graph, graph.node("Mul", [attention, dots]), 3)
    # [captions, words, images, regions] x [images, regions, d] -> [captions, words, images, d]
    by_image = graph.transpose(attention, (0, 2, 1, 3))
    attended = graph.transpose(graph.node("MatMul", [by_image, regions]), (0, 2, 1, 3))
    sizes = graph.node("Unsqueeze", [_norm(graph, clean), graph.constant([2])])
    cosine = _cosine(graph, inner, graph.node("Mul", [_norm(graph, attended), sizes]))
    total = _sum(graph, graph.node("Mul", [cosine, column]), 1)
    length = graph.node("ReduceSum", [real, graph.constant([1])], {"keepdims": 1})
    return graph.transpose(graph.node("Div", [total, length]), (1, 0))
