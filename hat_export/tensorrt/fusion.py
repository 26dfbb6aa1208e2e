"""Which attention layers a TensorRT engine runs as one fused kernel, read from the engine itself.

A graph that holds an ``Attention`` node proves nothing: TensorRT may fuse it or take it apart. What
an engine really runs is told by its layer information, or, where no GPU is present to load the
engine, by the ``Layers:`` block that ends a verbose build log.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

#: Name of TensorRT's kernels for fused attention (int8 and fp8 ones too). "attention" would also
#: match plain matrix products that are named after a layer.
FUSED_KERNEL = re.compile(r"^_gemm_mha")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LOGGED = re.compile(r"^Name: (.*?), LayerType: ", re.MULTILINE)


@dataclass(frozen=True)
class EngineLayer:
    """A kernel of an engine.

    Attributes:
        name: TensorRT's name of it.
        nodes: Names of the ONNX nodes that it does.
    """

    name: str
    nodes: tuple[str, ...]

    @property
    def is_fused_attention(self) -> bool:
        """Whether it is one kernel for a whole attention layer."""
        return FUSED_KERNEL.match(self.name) is not None


def layers_in_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The layers that the builder listed.

    Args:
        messages: Of the builder's logger, at verbose level, with detailed profiling verbosity.
    """
    lines = (
        line
        for message in messages
        if message.startswith("Layers:")
        for line in message.splitlines()
    )
    return tuple(
        EngineLayer(name[1], tuple(_NODE.findall(line)))
        for line in lines
        if (name := _LOGGED.match(line))
    )


def layers_of_engine(engine: Any, json_format: Any) -> tuple[EngineLayer, ...]:
    """The layers of a deserialized engine, by its inspector.

    Args:
        engine: ``ICudaEngine``, built with detailed profiling verbosity.
        json_format: ``LayerInformationFormat.JSON`` of the library.
    """
    text = engine.create_engine_inspector().get_engine_information(json_format)
    return tuple(
        EngineLayer(str(layer["Name"]), tuple(_NODE.findall(str(layer.get("Metadata", "")))))
        for layer in json.loads(text)["Layers"]
        if isinstance(layer, dict)
    )


def attention_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of an encoder's attention layers: one node each, whole or its softmax."""
    return tuple(node.name for node in model.graph.node if node.op_type in ("Attention", "Softmax"))


def attention_apart(
    nodes: Sequence[str], layers: Sequence[EngineLayer], profiles: int
) -> tuple[str, ...]:
    """Attention layers of the graph that some profile of the engine doesn't do in a fused kernel.

    Args:
        nodes: From :func:`attention_nodes`.
        layers: All layers of the engine; every profile has its own.
        profiles: How many profiles the engine has.
    """
    fused = Counter(node for layer in layers if layer.is_fused_attention for node in layer.nodes)
    return tuple(name for name in nodes if fused[name] < profiles)
