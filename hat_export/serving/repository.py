"""A model repository for NVIDIA Triton Inference Server, from a bundle.

Configurations are built as messages of the server's own protobuf schema (``model_config.proto``,
which tritonclient carries) and read back from the text that is written, so that a field or value
that the server doesn't know can't get into one.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hat_export.base.files import new_folder
from hat_export.bundle.bundle import Bundle, TensorSpec
from hat_export.errors import BackendUnavailableError, InputError
from hat_export.index.build import model_name
from hat_export.index.images import ImageIndex
from hat_export.index.query import open_index_file
from hat_export.runtime.self_test import read_self_test
from hat_export.serving.names import (
    ALIGNMENT,
    IMAGE,
    IMAGE_LEVELS,
    SCORE,
    SEARCH,
    TEXT,
    TEXT_LEVELS,
)

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

BACKENDS = ("onnxruntime", "tensorrt", "python")

#: Bundle graph -> model of the repository, and the outputs that it gives.
_GRAPHS = {
    "image": (IMAGE, IMAGE_LEVELS),
    "text": (TEXT, TEXT_LEVELS),
    "alignment": (ALIGNMENT, ("scores",)),
}
_CLASSES = {IMAGE: "ImageModel", TEXT: "TextModel", ALIGNMENT: "AlignmentModel"}


@dataclass(frozen=True)
class ServingOptions:
    """How a bundle shall be served.

    Attributes:
        backend: A name of :data:`BACKENDS`.
        max_batch: Largest batch of the encoders; 1 turns batching off.
        queue_delay: How long a request may wait for others, in microseconds.
        instances: Copies of each encoder that run beside each other.
        threads: Threads of an instance in the Python and ONNX Runtime backends.
        gpu: Whether instances run on GPUs.
        engines: TensorRT engines of the ``image`` and ``text`` graphs.
        index: Image index that the search model serves; none without.
        bundle_at: Where the server finds the bundle, if not where it is now.
        index_at: Where the server finds the index, if not where it is now.
        version: Name of the version folder.
    """

    backend: str = "onnxruntime"
    max_batch: int = 32
    queue_delay: int = 1000
    instances: int = 1
    threads: int = 1
    gpu: bool = False
    engines: Mapping[str, Path] | None = None
    index: Path | None = None
    bundle_at: Path | None = None
    index_at: Path | None = None
    version: int = 1


def write_repository(bundle: Bundle, target: Path, options: ServingOptions) -> list[str]:
    """Write a model repository; it appears complete or not at all.

    Args:
        bundle: What to serve, already checked.
        target: Folder of the repository; must not exist.
        options: How.

    Returns:
        Names of the models.

    Raises:
        InputError: if the options don't fit together or the bundle.
        BackendUnavailableError: if tritonclient, which has the schema, isn't installed.
        OutputError: if the folder exists or can't be written.
    """
    _check(bundle, options)
    configs = [_graph_config(bundle, graph, options) for graph in _GRAPHS]
    configs.append(_score_config(bundle))
    if options.index is not None:
        configs.append(_search_config(bundle, options))
    warmups = _warmups(bundle)
    with new_folder(target) as folder:
        for config in configs:
            model = folder / config.name
            version = model / str(options.version)
            version.mkdir(parents=True)
            if config.name in warmups:
                _add_warmup(config, warmups[config.name], model)
            (model / "config.pbtxt").write_text(_text(config), encoding="utf-8")
        for graph, (name, _) in _GRAPHS.items():
            _write_model(bundle, graph, folder / name / str(options.version), options)
        if options.index is not None:
            path = folder / SEARCH / str(options.version) / "model.py"
            path.write_text(_python_source("SearchModel"), encoding="utf-8")
    return [config.name for config in configs]


def _check(bundle: Bundle, options: ServingOptions) -> None:
    if options.backend not in BACKENDS:
        raise InputError(f"backend {options.backend!r}: expected one of {', '.join(BACKENDS)}")
    form = bundle.manifest.attention_form
    if options.backend != "python" and form == "packed":
        raise InputError(
            f"{bundle.path}: its graphs need hat-export's own operators; serve them with --backend "
            "python, or export the checkpoint with --target onnx"
        )
    if (options.backend == "tensorrt") != bool(options.engines):
        raise InputError(
            "TensorRT engines go with --backend tensorrt: give --image-engine and --text-engine "
            "with it, and only with it"
        )
    for graph in ("image", "text") if options.engines else ():
        path = (options.engines or {}).get(graph)
        if path is None or not path.is_file():
            raise InputError(f"--{graph}-engine {path}: no such TensorRT engine")
    if options.index is not None:
        with open_index_file(options.index) as index:
            if not isinstance(index, ImageIndex):
                raise InputError(f"{options.index}: an index of captions; expected one of images")
            if index.file.metadata["model"] != model_name(bundle):
                raise InputError(f"{options.index}: was made with another model than {bundle.path}")


def _schema() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except (ImportError, RuntimeError) as error:  # the latter without its extra "grpc"
        raise BackendUnavailableError(
            f"a model repository needs tritonclient ({error}); install it with: "
            "pip install 'hat-export[serve]'"
        ) from None
    return model_config_pb2


def _text(config: ModelConfig) -> str:
    """The configuration as text, after reading that text again."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    if text_format.Parse(text, _schema().ModelConfig()) != config:
        raise AssertionError(f"{config.name}: its text reads otherwise")
    return text


def _graph_config(bundle: Bundle, graph: str, options: ServingOptions) -> ModelConfig:
    schema = _schema()
    name, outputs = _GRAPHS[graph]
    info = bundle.manifest.graphs[graph]
    config = schema.ModelConfig(name=name)
    config.version_policy.latest.num_versions = 1
    batched = graph != "alignment"  # its images and captions are two batch dimensions
    config.max_batch_size = options.max_batch if batched else 0
    skip = 1 if batched else 0
    _add_tensors(config.input, info.inputs, skip)
    _add_tensors(config.output, [one for one in info.outputs if one.name in outputs], skip)
    gpu = options.gpu or options.backend == "tensorrt"
    kind = "KIND_GPU" if gpu else "KIND_CPU"
    config.instance_group.add(count=options.instances, kind=kind)
    if batched and options.max_batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay
    if options.backend == "python":
        config.backend = "python"
        _set_parameters(config, {"bundle": _bundle_at(bundle, options), "threads": options.threads})
    elif options.engines and graph in options.engines:
        config.platform = "tensorrt_plan"
    else:
        config.backend = "onnxruntime"
        _set_parameters(config, {"intra_op_thread_count": options.threads})
    return config


def _score_config(bundle: Bundle) -> ModelConfig:
    """The ensemble of the three models: what goes from one to the next stays in the server."""
    graphs = bundle.manifest.graphs
    config = _schema().ModelConfig(name=SCORE, platform="ensemble")
    config.version_policy.latest.num_versions = 1
    _add_tensors(config.input, [*graphs["image"].inputs, *graphs["text"].inputs], 0)
    _add_tensors(config.output, graphs["alignment"].outputs, 0)
    for graph, (name, outputs) in _GRAPHS.items():
        step = config.ensemble_scheduling.step.add(model_name=name, model_version=-1)
        for tensor in graphs[graph].inputs:
            step.input_map[tensor.name] = tensor.name
        for output in outputs:
            step.output_map[output] = output
    return config


def _search_config(bundle: Bundle, options: ServingOptions) -> ModelConfig:
    config = _schema().ModelConfig(name=SEARCH, backend="python", max_batch_size=options.max_batch)
    config.version_policy.latest.num_versions = 1
    config.input.add(name="query", data_type="TYPE_STRING", dims=[1])
    config.input.add(name="top_k", data_type="TYPE_INT32", dims=[1], optional=True)
    config.output.add(name="ids", data_type="TYPE_STRING", dims=[-1])
    config.output.add(name="scores", data_type="TYPE_FP32", dims=[-1])
    config.instance_group.add(count=options.instances, kind="KIND_CPU")
    if options.max_batch > 1:
        config.dynamic_batching.max_queue_delay_microseconds = options.queue_delay
    index = options.index_at or (options.index or Path()).absolute()
    _set_parameters(
        config,
        {
            "bundle": _bundle_at(bundle, options),
            "index": index,
            "threads": options.threads,
            "text_batch": options.max_batch,
        },
    )
    return config


def _bundle_at(bundle: Bundle, options: ServingOptions) -> Path:
    return options.bundle_at or bundle.path.absolute()


def _add_tensors(tensors: Any, specs: Sequence[TensorSpec], skip: int) -> None:
    """Add inputs or outputs, without the first ``skip`` dimensions."""
    kinds = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}
    for spec in specs:
        dims = [size if isinstance(size, int) else -1 for size in spec.shape[skip:]]
        tensors.add(name=spec.name, data_type=kinds[spec.dtype], dims=dims)


def _set_parameters(config: ModelConfig, parameters: Mapping[str, object]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = str(value)


def _warmups(bundle: Bundle) -> dict[str, dict[str, np.ndarray]]:
    """Per encoder, one image or caption of the bundle's self-test.

    The other models have nothing to warm up, and the server takes no warm-up for an ensemble.
    """
    stored = read_self_test(bundle)
    return {
        IMAGE: {"pixel_values": stored["pixel_values"][0]},
        TEXT: {name: stored[name][0] for name in ("input_ids", "attention_mask")},
    }


def _add_warmup(config: ModelConfig, inputs: Mapping[str, np.ndarray], model: Path) -> None:
    """Have the server run some inputs once before it takes requests."""
    folder = model / "warmup"
    folder.mkdir()
    warmup = config.model_warmup.add(name="self_test", batch_size=1)
    kinds = {tensor.name: tensor.data_type for tensor in config.input}
    for name, content in inputs.items():
        (folder / name).write_bytes(np.ascontiguousarray(content).tobytes())
        entry = warmup.inputs[name]
        entry.data_type = kinds[name]
        entry.dims.extend(content.shape)
        entry.input_data_file = name


def _write_model(bundle: Bundle, graph: str, folder: Path, options: ServingOptions) -> None:
    name, _ = _GRAPHS[graph]
    if options.backend == "python":
        (folder / "model.py").write_text(_python_source(_CLASSES[name]), encoding="utf-8")
        return
    if options.engines and graph in options.engines:
        shutil.copyfile(options.engines[graph], folder / "model.plan")
        return
    path = bundle.graph_path(graph)
    shutil.copyfile(path, folder / "model.onnx")
    weights = path.name + ".data"
    if weights in bundle.manifest.files:
        shutil.copyfile(bundle.file(weights), folder / weights)


def _python_source(name: str) -> str:
    return (
        '"""Runs in the Python that hat-export is installed in."""\n\n'
        f"from hat_export.serving.python_models import {name} as TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )
