"""Options that several commands share: one name, one meaning, one place in the help.

:data:`OPTIONS` is the table. A command takes an option from it by :func:`option`, or by one of the
annotated types below, and may only add what is particular to it; what no other command has is
defined beside the command, by :func:`own_option`. ``tests/cli/test_options.py`` holds every command
against the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


class Panel(StrEnum):
    """Groups of options in the help of a command, in the order in which they are shown."""

    model = "Model"
    data = "Data"
    output = "Output"
    performance = "Performance"
    advanced = "Advanced"


class Engine(StrEnum):
    """Where the work is done."""

    local = "local"
    ray = "ray"


@dataclass(frozen=True)
class Meaning:
    """What a name of an option means, whatever command it is given to.

    Attributes:
        type: Type of a value; several of them where an option may be repeated.
        panel: Where the help shows it.
        help: What it means, without a full stop; a command may go on from there.
        short: A letter for it, as ``-q``.
        negative: How a switch is turned off, where that can be said, as ``--no-verify``.
        taken: Whether a command has it today. The other names are kept free for this meaning.
    """

    type: type
    panel: Panel
    help: str
    short: str = ""
    negative: str = ""
    taken: bool = True

    def declarations(self, name: str) -> tuple[str, ...]:
        """How Typer is told of the option's spellings."""
        spelled = f"{name}/{self.negative}" if self.negative else name
        return (spelled, self.short) if self.short else (spelled,)


#: Name of an option -> its one meaning.
OPTIONS: dict[str, Meaning] = {
    "--spec": Meaning(Path, Panel.model, "Architecture: a preset name or a JSON file"),
    "--vocabulary": Meaning(Path, Panel.model, "vocab.txt, if it isn't beside the checkpoint"),
    "--target": Meaning(str, Panel.model, "What the bundle is made for"),
    "--precision": Meaning(str, Panel.model, "What the encoders compute in"),
    "--require-fused": Meaning(bool, Panel.model, "Fail unless every attention layer is one"),
    "--backend": Meaning(str, Panel.model, "What runs bundles"),
    "--data": Meaning(
        Path,
        Panel.data,
        "Karpathy-format JSON or its folder, JSONL or CSV with columns image and caption, "
        "or a Hugging Face dataset's folder",
    ),
    "--images": Meaning(Path, Panel.data, "Folder or zip of images; may be repeated"),
    "--calibration": Meaning(
        Path,
        Panel.data,
        "Dataset, as `hat-bench parity --data` takes it: real images and captions on which a "
        "lower precision finds its ranges",
    ),
    "--calibration-image-count": Meaning(
        int, Panel.data, "Images of the calibration data to use, evenly spread"
    ),
    "--split": Meaning(str, Panel.data, "Split of the data to use"),
    "--limit": Meaning(int, Panel.data, "Use only so many images of a split, evenly spread"),
    "--image-count": Meaning(int, Panel.data, "Number of images"),
    "--caption-count": Meaning(int, Panel.data, "Number of captions"),
    "--words": Meaning(int, Panel.data, "Word pieces per caption"),
    "--gallery": Meaning(int, Panel.data, "Images that a caption is ranked against"),
    "--max-drop": Meaning(
        str, Panel.output, "Recall budget in points, e.g. r1=0.2,rsum=0.5 or i2t_r1=0.1"
    ),
    "--storage": Meaning(str, Panel.output, "What an index stores features as"),
    "--report": Meaning(Path, Panel.output, "Write a report: .json, .md or .html; may be repeated"),
    "--json": Meaning(bool, Panel.output, "Print the result as JSON"),
    "--top": Meaning(int, Panel.output, "Number of results", short="-k"),
    "--overwrite": Meaning(
        bool, Panel.output, "Replace an existing bundle", negative="--no-overwrite"
    ),
    "--quiet": Meaning(bool, Panel.output, "No progress", short="-q"),
    "--threads": Meaning(int, Panel.performance, "CPU threads"),
    "--seconds": Meaning(float, Panel.performance, "Least time for which a case is measured"),
    "--max-batch": Meaning(int, Panel.performance, "Largest batch"),
    "--batch": Meaning(int, Panel.advanced, "Images or captions encoded at a time"),
    "--cache": Meaning(Path, Panel.advanced, "Folder that keeps work for the next run"),
    "--no-cache": Meaning(bool, Panel.advanced, "Keep nothing for the next run"),
    "--engine": Meaning(
        Engine, Panel.advanced, "Work in this process, or in workers of a Ray cluster"
    ),
    "--workers": Meaning(int, Panel.advanced, "Ray: number of workers"),
    "--address": Meaning(
        str,
        Panel.advanced,
        "Ray: address of a cluster, such as auto or HOST:PORT; default: one is started here",
    ),
    "--verify": Meaning(
        bool,
        Panel.advanced,
        "Check every file of the bundle by its SHA-256 first",
        negative="--no-verify",
    ),
    "--require-signature": Meaning(
        Path,
        Panel.advanced,
        "Refuse bundles that `hat-export sign` didn't sign with this key's secret half",
    ),
    "--device": Meaning(
        str,
        Panel.performance,
        "Where the model runs: cpu, cuda, cuda:N or openvino:gpu",
        taken=False,
    ),
    "--use-weights": Meaning(
        str, Panel.model, "Weights of a checkpoint to take: model or ema", taken=False
    ),
    "--member-weights": Meaning(
        float, Panel.model, "Weight of each member's score in an ensemble", taken=False
    ),
    "--max-caption-words": Meaning(
        int, Panel.data, "Word pieces after which a caption is cut off", taken=False
    ),
}


def option(
    name: str,
    detail: str = "",
    *,
    least: float | None = None,
    metavar: str | None = None,
    show_default: bool | str = True,
) -> Any:
    """An option of the table, for ``Annotated``.

    Args:
        name: A key of :data:`OPTIONS`.
        detail: What a command adds to the meaning; begins as the sentence goes on.
        least: Smallest value.
        metavar: How a value is shown.
        show_default: Whether the help shows the default, or what it shows.
    """
    meaning = OPTIONS[name]
    return typer.Option(
        *meaning.declarations(name),
        help=f"{meaning.help}{detail}.",
        rich_help_panel=meaning.panel.value,
        min=least,
        metavar=metavar,
        show_default=show_default,
    )


def own_option(
    name: str,
    panel: Panel,
    meaning: str,
    *,
    least: float | None = None,
    most: float | None = None,
    show_default: bool | str = True,
) -> Any:
    """An option that one command has alone, for ``Annotated``.

    Args:
        name: Its spelling, ``--off/--no-off`` for a switch of both kinds.
        panel: Where the help shows it.
        meaning: What it means, a sentence.
        least: Smallest value.
        most: Largest value.
        show_default: Whether the help shows the default, or what it shows.
    """
    return typer.Option(
        name,
        help=meaning,
        rich_help_panel=panel.value,
        min=least,
        max=most,
        show_default=show_default,
    )


SpecOption = Annotated[Path | None, option("--spec", show_default=False)]
VocabularyOption = Annotated[Path | None, option("--vocabulary")]
BackendOption = Annotated[str, option("--backend")]
DataOption = Annotated[Path, option("--data")]
ImagesOption = Annotated[list[Path] | None, option("--images", "; default: beside the data")]
LimitOption = Annotated[int | None, option("--limit", least=1)]
ReportOption = Annotated[list[Path] | None, option("--report")]
QuietOption = Annotated[bool, option("--quiet")]
OverwriteOption = Annotated[bool, option("--overwrite")]
ThreadsOption = Annotated[int | None, option("--threads", "; default: one per core", least=1)]
EngineOption = Annotated[Engine, option("--engine")]
WorkersOption = Annotated[int, option("--workers", least=1)]
AddressOption = Annotated[str | None, option("--address", show_default=False)]
SignatureOption = Annotated[
    Path | None,
    option("--require-signature", metavar="PUBLIC_KEY", show_default=False),
]
