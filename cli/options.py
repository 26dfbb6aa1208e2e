"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
