"""``hat-export triton``: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import Panel, SignatureOption, option, own_option


class ServerBackend(StrEnum):
    """What runs the graphs in the server."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    python = "python"


def triton_command(
    bundle: Annotated[Path, typer.Argument(help="What to serve.")],
    repository: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    backend: Annotated[
        ServerBackend,
        option(
            "--backend",
            " in the server: its ONNX Runtime or TensorRT backend, or its Python backend with "
            "hat-export in it",
        ),
    ] = ServerBackend.onnxruntime,
    image_engine: Annotated[
        Path | None,
        own_option(
            "--image-engine",
            Panel.model,
            "TensorRT engine of the image graph.",
            show_default=False,
        ),
    ] = None,
    text_engine: Annotated[
        Path | None,
        own_option(
            "--text-engine", Panel.model, "TensorRT engine of the text graph.", show_default=False
        ),
    ] = None,
    index: Annotated[
        Path | None,
        own_option(
            "--index",
            Panel.data,
            "Image index: adds the model hat_search, which finds images by a text.",
        ),
    ] = None,
    version: Annotated[
        int, own_option("--version", Panel.output, "Version folder of the models.", least=1)
    ] = 1,
    threads: Annotated[int, option("--threads", " of a copy", least=1)] = 1,
    instances: Annotated[
        int, own_option("--instances", Panel.performance, "Copies of each model.", least=1)
    ] = 1,
    gpu: Annotated[
        bool, own_option("--gpu", Panel.performance, "Run ONNX Runtime's copies on GPUs.")
    ] = False,
    max_batch: Annotated[
        int, option("--max-batch", " of an encoder; 1 turns batching off", least=1)
    ] = 32,
    queue_delay: Annotated[
        int,
        own_option(
            "--queue-delay",
            Panel.performance,
            "Microseconds that a request may wait for others.",
            least=0,
        ),
    ] = 1000,
    bundle_at: Annotated[
        Path | None,
        own_option(
            "--bundle-at",
            Panel.advanced,
            "Python backend and search: where the server finds the bundle; default: here.",
            show_default=False,
        ),
    ] = None,
    index_at: Annotated[
        Path | None,
        own_option(
            "--index-at",
            Panel.advanced,
            "Where the server finds the index; default: here.",
            show_default=False,
        ),
    ] = None,
    require_signature: SignatureOption = None,
) -> None:
    """Write a model repository for NVIDIA Triton Inference Server.

    Models: hat_image, hat_text and hat_alignment, the ensemble hat_score of them, and with --index
    the model hat_search. The bundle's self-test inputs warm them up.
    """
    from hat_export.bundle.bundle import Bundle
    from hat_export.errors import InputError
    from hat_export.serving.repository import ServingOptions, write_repository

    if gpu and backend is ServerBackend.python:
        raise InputError("--gpu: the Python backend runs hat-export's sessions on the CPU")
    common.require_signature(require_signature, bundle)
    engines = {"image": image_engine, "text": text_engine}
    options = ServingOptions(
        backend=backend.value,
        max_batch=max_batch,
        queue_delay=queue_delay,
        instances=instances,
        threads=threads,
        gpu=gpu,
        engines={name: path for name, path in engines.items() if path is not None},
        index=index,
        bundle_at=bundle_at,
        index_at=index_at,
        version=version,
    )
    names = write_repository(Bundle.read(bundle), repository, options)
    print(f"{repository}: {', '.join(names)}")
    print(f"  tritonserver --model-repository={repository}")


COMMAND = Command(
    "triton",
    triton_command,
    examples=(
        "hat-export triton bundle/ models/ --index photos.hatidx",
        "hat-export triton bundle/ models/ --backend python --instances 2 --threads 2",
    ),
)
