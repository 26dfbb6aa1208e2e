"""Graphs as files of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from hat_export.bundle.bundle import GraphInfo, TensorSpec

#: Weights above this go to a file of their own: protobuf ends at 2 GiB, and copies what it parses.
EXTERNAL_DATA_BYTES = 1 << 30


def write_graph(
    model: onnx.ModelProto,
    folder: Path,
    name: str,
    attention_layers: int,
    attention_fused: int,
    external_data_bytes: int,
    kept_fp32: Mapping[str, str],
) -> GraphInfo:
    """Write one graph, check it, and describe it for the manifest.

    Args:
        model: The graph.
        folder: Bundle folder.
        name: ``image``, ``text`` or ``alignment``; the file is ``name.onnx``.
        attention_layers: Attention layers that the model has in this graph.
        attention_fused: How many of them are one operator, as the passes report.
        external_data_bytes: Weights above this size go to ``name.onnx.data``.
        kept_fp32: Nodes kept in float32, with the reason.
    """
    path = folder / f"{name}.onnx"
    info = GraphInfo(
        file=path.name,
        inputs=tuple(_tensor_spec(value) for value in model.graph.input),
        outputs=tuple(_tensor_spec(value) for value in model.graph.output),
        nodes=len(model.graph.node),
        attention_expected=attention_layers,
        attention_fused=attention_fused,
        kept_fp32=kept_fp32,
    )
    external = model.ByteSize() > external_data_bytes
    onnx.save_model(model, path, save_as_external_data=external, location=f"{name}.onnx.data")
    onnx.checker.check_model(path, full_check=True)
    return info


def _tensor_spec(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    shape = tuple(dim.dim_param or dim.dim_value for dim in tensor.shape.dim)
    return TensorSpec(value.name, str(dtype), shape)
