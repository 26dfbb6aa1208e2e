"""From a checkpoint to a bundle: three graphs, written, checked and compared with PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from hat_export.base.files import check_target, new_folder
from hat_export.base.machine import default_threads
from hat_export.base.packages import package_versions
from hat_export.base.progress import SILENT, Progress
from hat_export.bundle.bundle import (
    PROJECTIONS,
    SELF_TEST,
    TOKENIZER,
    Bundle,
    GraphInfo,
    Manifest,
    list_files,
    write_manifest,
)
from hat_export.bundle.precision import PRECISIONS
from hat_export.data.dataset import CaptionDataset
from hat_export.data.tokenizer import CaptionTokenizer
from hat_export.errors import CheckpointError, FusionError, InputError, ToleranceError
from hat_export.export.attention import FUSED_OPERATORS, AttentionForm
from hat_export.export.calibration import dataset_feeds, noise_feeds
from hat_export.export.graph import OPSET
from hat_export.export.graph_file import EXTERNAL_DATA_BYTES, write_graph
from hat_export.export.mixed_precision import find_kept
from hat_export.export.observe import Feed
from hat_export.export.passes import Report, count_operators, run_passes
from hat_export.export.pipelines import ATTENTION_LAYERS, BUILDERS, LOWERINGS, build_graph
from hat_export.export.verify import verify_bundle
from hat_export.model.checkpoint import load_hat
from hat_export.runtime.backends import emulation_backend, onnxruntime_backend
from hat_export.runtime.backends.torch_backend import TorchSession
from hat_export.runtime.self_test import run_self_test, write_self_test
from hat_export.score.projection import write_projections
from hat_export.spec import ModelSpec


def export_onnx(
    checkpoint: Path,
    target: Path,
    spec: ModelSpec | None = None,
    vocabulary: Path | None = None,
    attention: AttentionForm = "onnx",
    precision: str = "fp32",
    require_fused: bool = False,
    calibration: CaptionDataset | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    progress: Progress = SILENT,
) -> Bundle:
    """Export a checkpoint and prove the result equal to PyTorch.

    Args:
        checkpoint: As for :func:`hat_export.load`.
        target: Folder of the bundle; appears only if everything succeeded.
        spec: Architecture, where the checkpoint doesn't tell it.
        vocabulary: ``vocab.txt``, where it isn't beside the checkpoint.
        attention: How attention is written in the graphs.
        precision: A name in :data:`hat_export.bundle.precision.PRECISIONS`, for the encoders. The
            alignment graph is always float32: it divides by norms, and its scores are sorted.
        require_fused: Whether every attention layer must be one fused operator.
        calibration: Images and captions on which a lower precision looks for what would overflow;
            default: made-up ones.
        overwrite: Whether an existing bundle may be replaced.
        threads: Threads of the graphs in the comparison; default: one per core.
        external_data_bytes: Weights above this size go to a separate file.
        progress: Told before each step.

    Returns:
        The bundle.

    Raises:
        CheckpointError: if the checkpoint can't be used.
        FusionError: if an attention layer is not fused although that was required.
        InputError: if the attention form can't be had in the precision.
        ToleranceError: if a result differs from PyTorch's by more than the tolerance.
        OutputError: if the bundle can't be written.
    """
    check_target(target, overwrite)
    if attention == "packed" and precision != "fp32":
        raise InputError(
            f"no {precision} for ONNX Runtime on a CPU: it computes in fp32 there; leave "
            "--precision out, or leave --target out to export for a GPU"
        )
    if require_fused and not FUSED_OPERATORS[attention]:
        raise FusionError(
            f"attention form {attention!r} has no fused operator; leave --require-fused out or "
            "choose another form"
        )
    threads = threads or default_threads()
    progress.step(f"loading {checkpoint}")
    loaded = load_hat(checkpoint, spec, vocabulary)
    tokenizer = CaptionTokenizer.from_vocabulary(loaded.vocabulary, loaded.spec.max_words)
    # One thread: PyTorch's sums depend on how it shares them out, and what it gives is in the
    # self-test and the manifest, which are to be the same on every machine.
    reference = TorchSession(loaded.model, tokenizer, 1)
    weights = {name: tensor.numpy() for name, tensor in loaded.model.state_dict().items()}
    feeds = (
        dataset_feeds(calibration, loaded.spec, tokenizer)
        if calibration
        else noise_feeds(loaded.spec)
    )
    with new_folder(target, overwrite) as folder:
        infos = {}
        for name in BUILDERS:
            progress.step(f"writing the {name} graph")
            model, reports = build_graph(name, loaded.spec, weights, attention)
            kept: dict[str, str] = {}
            if precision != "fp32" and name in feeds:
                progress.step(f"looking for overflow in the {name} graph")
                kept = _kept(checkpoint, model, precision, feeds[name], threads)
                model, lowered = run_passes(LOWERINGS[precision](kept), model)
                reports += lowered
            layers = ATTENTION_LAYERS[name](loaded.spec)
            fused = count_operators(FUSED_OPERATORS[attention], reports)
            infos[name] = write_graph(model, folder, name, layers, fused, external_data_bytes, kept)
            if require_fused:
                _check_fused(name, infos[name], FUSED_OPERATORS[attention], model, reports)
        (folder / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        write_projections(folder / PROJECTIONS, reference.projections)
        progress.step("writing the self-test")
        write_self_test(folder / SELF_TEST, loaded.spec, reference)
        files = list_files(folder)

        def manifest(verification: Mapping[str, Any]) -> Manifest:
            return Manifest(
                spec=loaded.spec,
                precision=precision,
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
        progress.step("comparing with PyTorch")
        # The CPU's float16 rounds less often than a GPU's, so low precision is emulated.
        session_of = onnxruntime_backend if precision == "fp32" else emulation_backend
        with session_of.open_session(bundle, threads) as session:
            run_self_test(bundle, session)
            verification = verify_bundle(reference, session, PRECISIONS[precision], progress)
        if verification.failures:
            raise ToleranceError(
                f"{checkpoint}: the exported graphs differ from PyTorch: "
                f"{'; '.join(verification.failures)}. Nothing was written"
            )
        write_manifest(folder, manifest(verification.to_json()))
    return Bundle.read(target, verify=False)


def _kept(
    checkpoint: Path, model: onnx.ModelProto, precision: str, feeds: Iterable[Feed], threads: int
) -> dict[str, str]:
    try:
        return find_kept(model, precision, feeds, threads)
    except ValueError as error:
        raise CheckpointError(
            f"{checkpoint}: {error}; the model gives no usable features in PyTorch either"
        ) from None


def _check_fused(
    name: str,
    info: GraphInfo,
    fused_operators: Sequence[str],
    model: onnx.ModelProto,
    reports: Sequence[Report],
) -> None:
    """Compare the count of fused attention with the architecture's, and name what stands instead.

    Raises:
        FusionError: if they differ.
    """
    if info.attention_fused == info.attention_expected:
        return
    loose = [node.name for node in model.graph.node if node.op_type == "Softmax"]
    left = [
        f"{node}: {reason}"
        for report in reports
        if set(report.change) & set(fused_operators)
        for node, reason in report.left.items()
    ]
    raise FusionError(
        f"{name} graph: {info.attention_fused} of {info.attention_expected} attention layers are "
        f"one operator ({' or '.join(fused_operators)})"
        + (f"; taken apart: {', '.join(loose[:3])}" if loose else "")
        + (f"; left alone: {', '.join(left[:3])}" if left else "")
        + ". The pattern is in hat_export/export/attention.py. Nothing was written"
    )
