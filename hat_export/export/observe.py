"""Looking at tensors inside a graph: mark them as outputs, run it, hand over what came out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper

from hat_export.runtime.backends.onnxruntime_backend import session_options

if TYPE_CHECKING:
    import onnxruntime

#: Inputs of a graph by name.
Feed = Mapping[str, np.ndarray]


def open_graph(
    model: onnx.ModelProto, threads: int, own_operators: bool = False, folder: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session on a graph in memory, with the options that every session of the project has.

    Args:
        model: The graph; changed where ``folder`` is given: its weights move to a file.
        threads: Threads of the run.
        own_operators: Whether it may hold the project's own operators.
        folder: Where a copy is written for the runtime to map; needed beyond 2 GB.
    """
    import onnxruntime

    source: str | bytes
    if folder is None:
        source = model.SerializeToString()
    else:
        source = str(folder / "observed.onnx")
        onnx.save_model(model, source, save_as_external_data=True, location="observed.onnx.data")
    return onnxruntime.InferenceSession(
        source, session_options(threads, own_operators), providers=["CPUExecutionProvider"]
    )


def mark_outputs(model: onnx.ModelProto, values: Iterable[str]) -> None:
    """Have a graph give some of its float32 tensors too; those that it gives stay as they are."""
    present = {output.name for output in model.graph.output}
    for value in dict.fromkeys(values):
        if value not in present:
            model.graph.output.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, None))


def observe_tensors(
    session: onnxruntime.InferenceSession, values: Sequence[str], feeds: Iterable[Feed]
) -> Iterator[tuple[Feed, dict[str, np.ndarray]]]:
    """Run a marked graph on data, one batch at a time.

    Args:
        session: From :func:`open_graph`, after :func:`mark_outputs`.
        values: Tensors wanted.
        feeds: Inputs, gone through once.

    Yields:
        Each feed with the tensors that it gave; nothing of the one before is kept.
    """
    for feed in feeds:
        yield feed, dict(zip(values, session.run(list(values), dict(feed)), strict=True))


def largest_magnitudes(
    model: onnx.ModelProto, values: Sequence[str], feeds: Iterable[Feed], threads: int
) -> dict[str, float]:
    """Largest absolute value of some tensors over all feeds; NaN where one is NaN.

    The maximum is taken inside the graph, so that memory doesn't grow with the number of tensors.

    Args:
        model: float32 graph; not changed.
        values: Tensors that it computes.
        feeds: Inputs to run it on.
        threads: Threads of the run.
    """
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    probes = {value: f"{value}/largest" for value in values}
    for value, probe in probes.items():
        watched.graph.node.extend(
            [
                helper.make_node("Abs", [value], [f"{value}/abs"]),
                helper.make_node("ReduceMax", [f"{value}/abs"], [probe], keepdims=0),
            ]
        )
        watched.graph.output.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))
    largest = dict.fromkeys(values, 0.0)
    session = open_graph(watched, threads)
    for _, found in observe_tensors(session, list(probes.values()), feeds):
        for value, probe in probes.items():
            # np.maximum, unlike max, lets a NaN through.
            largest[value] = float(np.maximum(largest[value], found[probe]))
    return largest
