"""``hat-export``: from a checkpoint to a bundle, and a look into one."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common

app = typer.Typer(
    help="Export trained HAT models for production.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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


class Attention(StrEnum):
    """How attention is written in the graphs."""

    onnx = "onnx"
    decomposed = "decomposed"


@app.callback()
def program() -> None:
    """Export trained HAT models for production."""


@app.command()
def onnx(
    checkpoint: Annotated[
        Path, typer.Argument(help="Lightning .ckpt, PyTorch state dict, .safetensors, or folder.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of the bundle; must not exist.")],
    spec: SpecOption = None,
    vocabulary: VocabularyOption = None,
    attention: Annotated[
        Attention,
        typer.Option(help="Attention as one fused operator (onnx) or taken apart (decomposed)."),
    ] = Attention.onnx,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing bundle.")] = False,
    threads: ThreadsOption = None,
    quiet: QuietOption = False,
) -> None:
    """Export image, text and alignment graphs as a bundle, checked against PyTorch.

    The bundle appears only if every output equals PyTorch's within the tolerance at batch sizes
    1, 2, 3 and 17 and at caption lengths from 2 to the longest.
    """
    from hat_export.api import require_export_packages
    from hat_export.errors import CheckpointError

    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint; expected a file or a folder")
    require_export_packages("onnx", "onnxruntime")
    from hat_export.export.onnx_export import export_onnx

    bundle = export_onnx(
        checkpoint,
        out,
        spec=common.read_spec(spec),
        vocabulary=vocabulary,
        attention="onnx" if attention is Attention.onnx else "decomposed",
        overwrite=overwrite,
        threads=threads,
        progress=common.Progress(quiet).step,
    )
    found = bundle.manifest.verification
    parts = [
        f"{what} within {found[what]['largest_difference']:.2g} "
        f"(tolerance {found[what]['tolerance']:g})"
        for what in found
    ]
    print(f"{out}: equal to PyTorch: {', '.join(parts)}")
    for name, graph in bundle.manifest.graphs.items():
        if graph.attention_expected:
            print(
                f"  {name}: {graph.attention_fused} of {graph.attention_expected} attention fused"
            )


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest.")] = False,
    verify: Annotated[bool, typer.Option(help="Check every file's SHA-256.")] = True,
) -> None:
    """Show what is inside a bundle, after checking that it is intact."""
    import json

    from hat_export.bundle import Bundle
    from hat_export.inspection import bundle_report

    opened = Bundle.read(bundle, verify)
    if as_json:
        print(json.dumps(opened.manifest.to_json(), indent=1, ensure_ascii=False))
        return
    common.show(bundle_report(opened, verify))


def main() -> None:
    """Console script ``hat-export``."""
    common.run(app, "hat-export")


if __name__ == "__main__":
    main()
