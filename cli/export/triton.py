"""``hat-export triton``: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import SignatureOption


class ServerBackend(StrEnum):
    """What runs the graphs in the server."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    python = "python"


def triton(
    bundle: Annotated[Path, typer.Argument(help="What to serve.")],
    repository: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
    backend: Annotated[
        ServerBackend,
        typer.Option(
            help="The server's ONNX Runtime or TensorRT backend, or its Python backend with "
            "hat-export in it."
        ),
    ] = ServerBackend.onnxruntime,
    image_engine: Annotated[
        Path | None, typer.Option(help="TensorRT engine of the image graph.", show_default=False)
    ] = None,
    text_engine: Annotated[
        Path | None, typer.Option(help="TensorRT engine of the text graph.", show_default=False)
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(help="Image index: adds the model hat_search, which finds images by a text."),
    ] = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Largest batch of an encoder; 1 turns batching off.")
    ] = 32,
    queue_delay: Annotated[
        int, typer.Option(min=0, help="Microseconds that a request may wait for others.")
    ] = 1000,
    instances: Annotated[int, typer.Option(min=1, help="Copies of each model.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a copy.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Run ONNX Runtime's copies on GPUs.")] = False,
    bundle_at: Annotated[
        Path | None,
        typer.Option(
            help="Python backend and search: where the server finds the bundle; default: here.",
            show_default=False,
        ),
    ] = None,
    index_at: Annotated[
        Path | None,
        typer.Option(help="Where the server finds the index; default: here.", show_default=False),
    ] = None,
    version: Annotated[int, typer.Option(min=1, help="Version folder of the models.")] = 1,
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
