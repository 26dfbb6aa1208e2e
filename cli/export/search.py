"""``hat-export search``: images of an index by a text, or captions of one by an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import (
    BackendOption,
    Panel,
    SignatureOption,
    ThreadsOption,
    option,
    own_option,
)


def search_command(
    index: Annotated[Path, typer.Argument(help="An index that `hat-export index` made.")],
    query: Annotated[str | None, typer.Argument(help="Text that describes the images.")] = None,
    bundle: Annotated[
        Path | None,
        own_option("--bundle", Panel.model, "The model; default: the bundle it was indexed with."),
    ] = None,
    backend: BackendOption = "onnxruntime",
    image: Annotated[
        Path | None, own_option("--image", Panel.data, "Search a caption index by this image.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        option("--images", ", for the page of --html; default: where they were indexed"),
    ] = None,
    top: Annotated[int, option("--top", least=1)] = 10,
    html: Annotated[
        Path | None,
        own_option("--html", Panel.output, "Write the results as a page with pictures."),
    ] = None,
    as_json: Annotated[bool, option("--json")] = False,
    threads: ThreadsOption = None,
    rescore: Annotated[
        int,
        own_option(
            "--rescore",
            Panel.performance,
            "Two-stage search: score so many candidates exactly, those with the nearest pooled "
            "vectors. `hat-bench search` measures how many a recall needs.",
            least=1,
        ),
    ] = 1000,
    exact: Annotated[
        bool, own_option("--exact", Panel.performance, "Score everything exactly.")
    ] = False,
    verify: Annotated[bool, option("--verify", ", and run its self-test")] = True,
    require_signature: SignatureOption = None,
) -> None:
    """Find the images that fit a text, or with --image the captions that fit an image."""
    import json
    import time

    from hat_export.base.files import write_text
    from hat_export.errors import InputError
    from hat_export.index.query import found_captions, found_images, hits_page, open_search
    from hat_export.report.report import Table

    asked = query if query is not None else image
    if asked is None or (query is not None and image is not None):
        raise InputError("expected a text to search by, or --image FILE: one of them")
    with open_search(index, bundle, backend, threads, verify, require_signature) as opened:
        limit = None if exact else max(rescore, top)
        started = time.perf_counter()
        if isinstance(asked, str):
            hits = found_images(opened, asked, top, limit)
        else:
            hits = found_captions(opened, asked, top, limit)
        seconds = time.perf_counter() - started
        scored = len(opened.index) if limit is None else min(limit, len(opened.index))
        facts = (
            f"{scored} of {len(opened.index)} {opened.index.kind} scored exactly "
            f"in {1e3 * seconds:.0f} ms"
        )
        if html is not None:
            write_text(html, hits_page(opened, asked, hits, facts, images))
    if as_json:
        found = [
            {"id": name, "score": float(score)}
            for name, score in zip(hits.ids, hits.scores, strict=True)
        ]
        print(json.dumps({"results": found, "scored": scored}, indent=1, ensure_ascii=False))
        return
    columns = ("rank", "score", opened.index.kind.removesuffix("s"))
    rows = tuple(
        (str(rank), f"{score:.4f}", name)
        for rank, (name, score) in enumerate(zip(hits.ids, hits.scores, strict=True), start=1)
    )
    common.show_table(Table("", columns, rows), text_column=2)
    print(facts + (f"; {html} written" if html else ""))


COMMAND = Command(
    "search",
    search_command,
    examples=(
        'hat-export search photos.hatidx "a dog on a beach" --html found.html',
        "hat-export search captions.hatidx --image beach.jpg -k 5",
    ),
)
