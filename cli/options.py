"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Engine(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


SpecOption = Annotated[
    Path | None,
    typer.Option("--spec", help="Architecture: a preset name or a JSON file.", show_default=False),
]
VocabularyOption = Annotated[
    Path | None,
    typer.Option("--vocabulary", help="vocab.txt, if it isn't beside the checkpoint."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads; default: one per core.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
SignatureOption = Annotated[
    Path | None,
    typer.Option(
        "--require-signature",
        metavar="PUBLIC_KEY",
        help="Refuse bundles that `hat-export sign` didn't sign with this key's secret half.",
        show_default=False,
    ),
]
BackendOption = Annotated[str, typer.Option("--backend", help="What runs bundles.")]
ReportOption = Annotated[
    list[Path] | None,
    typer.Option("--report", help="Write a report: .json, .md or .html; may be repeated."),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Karpathy-format JSON or its folder, JSONL or CSV with columns image and caption, "
        "or a Hugging Face dataset's folder.",
    ),
]
ImagesOption = Annotated[
    list[Path] | None,
    typer.Option("--images", help="Folder or zip of images; default: beside the data."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="Use only so many images of a split, evenly spread."),
]
EngineOption = Annotated[
    Engine, typer.Option("--engine", help="Work in this process, or in workers of a Ray cluster.")
]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Ray: number of workers.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray: address of a cluster, such as auto or HOST:PORT; default: one is started here.",
        show_default=False,
    ),
]
