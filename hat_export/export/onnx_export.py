"""From a checkpoint to a bundle: three graphs, written, checked and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hat_export.backends.onnxruntime_backend import open_session
from hat_export.backends.torch_backend import TorchSession
from hat_export.bundle import (
    PROJECTIONS,
    SELF_TEST,
    TOKENIZER,
    Bundle,
    GraphInfo,
    Manifest,
    TensorSpec,
    list_files,
    write_manifest,
)
from hat_export.environment import default_threads, package_versions
from hat_export.errors import ToleranceError
from hat_export.export.alignment import alignment_graph
from hat_export.export.attention import FUSED_OPERATORS, AttentionForm
from hat_export.export.bert import text_graph
from hat_export.export.graph import OPSET, GraphBuilder
from hat_export.export.swin import image_graph
from hat_export.export.verify import verify_bundle
from hat_export.files import check_target, new_folder
from hat_export.index_projection import write_projections
from hat_export.model.checkpoint import load_hat
from hat_export.self_test import run_self_test, write_self_test
from hat_export.spec import ModelSpec
from hat_export.tokenizer import CaptionTokenizer

#: Weights above this go to a file of their own: protobuf ends at 2 GiB, and copies what it parses.
EXTERNAL_DATA_BYTES = 1 << 30

Progress = Callable[[str], None]


def export_onnx(
    checkpoint: Path,
    target: Path,
    spec: ModelSpec | None = None,
    vocabulary: Path | None = None,
    attention: AttentionForm = "onnx",
    overwrite: bool = False,
    threads: int | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    progress: Progress = lambda message: None,
) -> Bundle:
    """Export a checkpoint and prove the result equal to PyTorch.

    Args:
        checkpoint: As for :func:`hat_export.load`.
        target: Folder of the bundle; appears only if everything succeeded.
        spec: Architecture, where the checkpoint doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside the checkpoint.
        attention: How attention is written in the graphs.
        overwrite: Whether an existing bundle may be replaced.
        threads: Threads for the comparison; default: one per core.
        external_data_bytes: Weights above this size go to a separate file.
        progress: Called with a short line before each step.

    Returns:
        The bundle.

    Raises:
        CheckpointError: if the checkpoint can't be used.
        ToleranceError: if a result differs from PyTorch's by more than the tolerance.
        OutputError: if the bundle can't be written.
    """
    check_target(target, overwrite)
    threads = threads or default_threads()
    progress(f"loading {checkpoint}")
    loaded = load_hat(checkpoint, spec, vocabulary)
    tokenizer = CaptionTokenizer.from_vocabulary(loaded.vocabulary, loaded.spec.max_words)
    reference = TorchSession(loaded.model, tokenizer, threads)
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    graphs: dict[str, tuple[Callable[[], GraphBuilder], int]] = {
        "image": (lambda: image_graph(loaded.spec, weights, attention), sum(loaded.spec.depths)),
        "text": (
            lambda: text_graph(loaded.spec, weights, attention),
            max(loaded.spec.text_level_layers) + 1,
        ),
        "alignment": (lambda: alignment_graph(loaded.spec), 0),
    }
    with new_folder(target, overwrite) as folder:
        infos = {}
        for name, (build, layers) in graphs.items():
            progress(f"writing the {name} graph")
            model = build().model({"hat_export.graph": name})
            infos[name] = write_graph(
                model, folder, name, layers, FUSED_OPERATORS[attention], external_data_bytes
            )
        (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        write_projections(folder / PROJECTIONS, reference.projections)
        progress("writing the self-test")
        write_self_test(folder / SELF_TEST, loaded.spec, reference)
        files = list_files(folder)

        def manifest(verification: Mapping[str, Any]) -> Manifest:
            return Manifest(
                spec=loaded.spec,
                precision="fp32",
                opset=OPSET,
                attention_form=attention,
                graphs=infos,
                checkpoint=loaded.provenance,
                verification=verification,
                tools=package_versions(),
                files=files,
            )

        write_manifest(folder, manifest({}))
        bundle = Bundle.read(folder, verify=False)  # hashed a moment ago
        progress("comparing with PyTorch")
        with open_session(bundle, threads) as session:
            run_self_test(bundle, session)
            verification = verify_bundle(reference, session, progress)
        if verification.failures:
            raise ToleranceError(
                f"{checkpoint}: the exported graphs differ from PyTorch: "
                f"{'; '.join(verification.failures)}. Nothing was written"
            )
        write_manifest(folder, manifest(verification.to_json()))
    return Bundle.read(target, verify=False)


def write_graph(
    model: onnx.ModelProto,
    folder: Path,
    name: str,
    attention_layers: int,
    fused_operator: str,
    external_data_bytes: int,
) -> GraphInfo:
    """Write one graph, check it, and describe it for the manifest.

    Args:
        model: The graph.
        folder: Bundle folder.
        name: ``image``, ``text`` or ``alignment``; the file is ``name.onnx``.
        attention_layers: Attention layers that the model has in this graph.
        fused_operator: Operator type that counts as fused attention; empty for none.
        external_data_bytes: Weights above this size go to ``name.onnx.data``.
    """
    path = folder / f"{name}.onnx"
    info = GraphInfo(
        file=path.name,
        inputs=tuple(_tensor_spec(value) for value in model.graph.input),
        outputs=tuple(_tensor_spec(value) for value in model.graph.output),
        nodes=len(model.graph.node),
        attention_expected=attention_layers,
        attention_fused=sum(
            1 for node in model.graph.node if fused_operator and node.op_type == fused_operator
        ),
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
