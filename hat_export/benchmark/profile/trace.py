"""ONNX Runtime's profile: which node ran how long, and which layer of the model it belongs to.

Nodes of a bundle are named by the module of the PyTorch model that they compute, a slash, and the
operator (``vit_model.layers.2.blocks.7/MatMul_1``). ONNX Runtime keeps these names where it only
replaces a node, and gives new names to some of those that it fuses. Nodes run one after the other,
so that one without a layer of its own belongs to the layer of the one before it: a fused BiasGelu
to the product that it follows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from hat_export.errors import BackendUnavailableError, InputError

#: Layer of what the runtime made itself before the first node of the model.
RUNTIME = "(made by the runtime)"
_KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Event:
    """One execution of a node.

    Attributes:
        node: Its name.
        operator: Its operator type.
        layer: Module of the model; :data:`RUNTIME` where there is none.
        run: Which run of the graph it belongs to, from 0.
        seconds: Duration.
    """

    node: str
    operator: str
    layer: str
    run: int
    seconds: float


@dataclass(frozen=True)
class Trace:
    """The profile of one graph.

    Attributes:
        events: Every node execution.
        runs: Seconds of every whole run.
    """

    events: tuple[Event, ...]
    runs: tuple[float, ...]


def graph_layers(path: Path) -> set[str]:
    """Layers that the nodes of an ONNX file are named by.

    Raises:
        BackendUnavailableError: if the onnx package isn't installed.
        InputError: if the file is no ONNX graph.
    """
    try:
        import onnx
    except ImportError:
        raise BackendUnavailableError(
            "the layers of a graph are read by the onnx package, which isn't installed; install it "
            "with: pip install 'hat-export[export]'"
        ) from None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf's errors share no base but Exception
        raise InputError(f"{path}: not a readable ONNX graph ({error})") from None
    return {node.name.rpartition("/")[0] for node in graph.node} - {""}


def layer_of(node: str, layers: Collection[str]) -> str:
    """The model's module that a node computes: the longest known layer that its name begins with.

    Args:
        node: Name of the node; fused nodes may have several joined.
        layers: Layers of the bundle's graph.
    """
    begin = node.rpartition("/")[0]
    while begin:
        if begin in layers:
            return begin
        begin = begin.rpartition("/")[0]
    found = [layer for layer in layers if re.search(rf"(^|\W){re.escape(layer)}/", node)]
    return max(found, key=len, default=RUNTIME)


def read_trace(path: Path, layers: Collection[str]) -> Trace:
    """The profile in a file.

    Args:
        path: What ONNX Runtime wrote.
        layers: Layers of the bundle's graph.

    Raises:
        InputError: if it is no profile.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        runs = sorted((e["ts"], e["dur"]) for e in entries if e.get("name") == "model_run")
        nodes = [
            e for e in entries if e.get("cat") == "Node" and str(e.get("name")).endswith(_KERNEL)
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: not a profile of ONNX Runtime ({error})") from None
    events = []
    before = (-1, RUNTIME)
    for entry in sorted(nodes, key=lambda node: node["ts"]):
        name = str(entry["name"]).removesuffix(_KERNEL)
        run = sum(start <= entry["ts"] for start, _ in runs) - 1
        layer = layer_of(name, layers)
        if layer == RUNTIME and before[0] == run:
            layer = before[1]
        before = (run, layer)
        operator = str(entry["args"].get("op_name", ""))
        events.append(Event(name, operator, layer, run, 1e-6 * entry["dur"]))
    return Trace(tuple(events), tuple(1e-6 * duration for _, duration in runs))
