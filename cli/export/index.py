"""``hat-export index``: encode images, or captions, into an index that can be searched."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    AddressOption,
    BackendOption,
    Engine,
    EngineOption,
    Panel,
    QuietOption,
    SignatureOption,
    ThreadsOption,
    WorkersOption,
    option,
    own_option,
)

if TYPE_CHECKING:
    from hat_export.index.build import Skipped

#: Skipped images that are named on standard error; all are in the file of --skipped.
SHOWN_SKIPPED = 10


class Storage(StrEnum):
    """What features are stored as."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"
    int8 = "int8"


def index_command(
    bundle: Annotated[Path, typer.Argument(help="The model.")],
    images: Annotated[
        list[Path],
        typer.Argument(
            help="Folders, .zip, .tar (webdataset) or .parquet files of images, or .txt lists of "
            "paths; with --captions: text files with a caption per line."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The index; images are added if it is there.")],
    backend: BackendOption = "onnxruntime",
    captions: Annotated[
        bool,
        own_option("--captions", Panel.data, "Index captions, to be found by images."),
    ] = False,
    skip_known: Annotated[
        bool,
        own_option(
            "--skip-known",
            Panel.data,
            "Leave out names that the index has from another source, as after a move, instead of "
            "refusing them.",
        ),
    ] = False,
    storage: Annotated[
        Storage | None,
        option(
            "--storage",
            ", where it is new; default: float16, captions float32",
            show_default=False,
        ),
    ] = None,
    skipped: Annotated[
        Path | None,
        own_option(
            "--skipped",
            Panel.output,
            "Write names and reasons of skipped images as JSON lines.",
        ),
    ] = None,
    quiet: QuietOption = False,
    threads: ThreadsOption = None,
    batch: Annotated[int, option("--batch", least=1)] = 32,
    commit: Annotated[
        int,
        own_option(
            "--commit",
            Panel.advanced,
            "Images that are written together, lost by a kill at most.",
            least=1,
        ),
    ] = 128,
    engine: EngineOption = Engine.local,
    workers: WorkersOption = 2,
    address: AddressOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Encode images into an index, or add to one; interrupted, the same command goes on.

    What is in the index already, by its name, is left out; if it came from another source, that is
    an error. Images that can't be read are reported and skipped. With --engine ray every worker has
    --threads threads, one if not given, and must see bundle and images under the same paths.
    """
    from functools import partial

    from hat_export.base.files import check_writable
    from hat_export.base.machine import default_threads
    from hat_export.bundle.bundle import Bundle
    from hat_export.data.sources import list_images
    from hat_export.errors import InputError
    from hat_export.index.build import (
        encode_here,
        index_captions,
        index_images,
        note_origin,
        open_index,
        refuse_namesakes,
    )
    from hat_export.index.build_ray import encode_with_ray
    from hat_export.index.captions import CaptionIndex
    from hat_export.index.images import ImageIndex
    from hat_export.runtime.backends import open_checked

    ray = common.ray_workers(engine, workers, threads, address)
    if captions and ray:
        raise InputError("--captions are encoded in this process; leave --engine ray out")
    if skipped is not None:
        check_writable(skipped)
    common.require_signature(require_signature, bundle)
    progress = common.show_progress(quiet)
    texts = common.read_lines(images) if captions else []
    listed = {} if captions else {source: list(list_images([source])) for source in images}
    refs = [ref for found in listed.values() for ref in found]
    progress.step(f"{len(texts or refs)} {'captions' if captions else 'images'} listed")
    cores = threads or default_threads()
    with open_checked(bundle, backend, cores, verify=True) as session:
        kind = CaptionIndex if captions else ImageIndex
        precision = storage.value if storage else None
        opened = Bundle.read(bundle, verify=False)
        with open_index(out, kind, opened, session.projections, precision) as target:
            if target.file.notice:
                progress.step(target.file.notice)
            if isinstance(target, ImageIndex) and not skip_known:
                for source, found in listed.items():
                    refuse_namesakes(target, source, found)
            note_origin(target, bundle, images)
            if isinstance(target, CaptionIndex):
                result = index_captions(session, texts, target, batch, progress)
            else:
                encode = partial(encode_here, session)
                if ray:
                    encode = partial(encode_with_ray, ray, bundle, backend, progress)
                result = index_images(target, refs, encode, batch, commit, progress)
            total, size = len(target), out.stat().st_size
    _report_skipped(result.skipped, skipped)
    parts = [f"{result.added} added"]
    parts += [f"{result.present} were there"] if result.present else []
    parts += [f"{len(result.skipped)} skipped"] if result.skipped else []
    what = "captions" if captions else "images"
    print(f"{out}: {', '.join(parts)}; {total} {what}, {size / 1e6:.1f} MB")


def _report_skipped(skipped: Sequence[Skipped], path: Path | None) -> None:
    import json
    import sys

    from hat_export.base.files import write_text
    from hat_export.base.terminal import printable

    if path is not None:
        lines = [json.dumps({"name": one.name, "reason": one.reason}) + "\n" for one in skipped]
        write_text(path, "".join(lines))
    for one in skipped[:SHOWN_SKIPPED]:
        print(f"  skipped {one.name!r}: {printable(one.reason)}", file=sys.stderr)
    if len(skipped) > SHOWN_SKIPPED:
        where = path or "name a file for all of them: --skipped FILE"
        print(f"  ... {len(skipped) - SHOWN_SKIPPED} more skipped ({where})", file=sys.stderr)


COMMAND = Command(
    "index",
    index_command,
    examples=(
        "hat-export index bundle/ photos/ photos.hatidx",
        "hat-export index bundle/ captions.txt captions.hatidx --captions",
    ),
)
