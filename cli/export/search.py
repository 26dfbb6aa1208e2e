"""``hat-export search``: images of an index by a text, or captions of one by an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.options import BackendOption, SignatureOption, ThreadsOption


def search(
    index: Annotated[Path, typer.Argument(help="An index that `hat-export index` made.")],
    query: Annotated[str | None, typer.Argument(help="Text that describes the images.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Search a caption index by this image.")
    ] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Results.")] = 10,
    rescore: Annotated[
        int,
        typer.Option(
            min=1,
            help="Two-stage search: score so many candidates exactly, those with the nearest "
            "pooled vectors. `hat-bench search` measures how many a recall needs.",
        ),
    ] = 1000,
    exact: Annotated[bool, typer.Option("--exact", help="Score everything exactly.")] = False,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write the results as a page with pictures.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images", help="Where the pictures of the page are; default: where they were indexed."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="The model; default: the bundle it was indexed with."),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Check the bundle's hashes and run its self-test first.")
    ] = True,
    backend: BackendOption = "onnxruntime",
    threads: ThreadsOption = None,
    require_signature: SignatureOption = None,
) -> None:
    """Find the images that fit a text, or with --image the captions that fit an image."""
    import json
    import time

    from hat_export.base.files import write_text
    from hat_export.errors import InputError
    from hat_export.index.query import found_captions, found_images, open_search, search_page
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
            write_text(html, search_page(opened, asked, hits, facts, images))
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
