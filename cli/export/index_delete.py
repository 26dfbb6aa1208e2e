"""``hat-export index-delete``: take records out of an index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import Panel, own_option


def index_delete_command(
    index: Annotated[Path, typer.Argument(help="The index.")],
    ids: Annotated[
        list[str] | None, typer.Argument(help="Names of images, or captions, to take out.")
    ] = None,
    listed: Annotated[
        list[Path] | None,
        own_option("--listed", Panel.data, "Text files with a name per line."),
    ] = None,
    compact: Annotated[
        bool,
        own_option("--compact", Panel.output, "Write the file anew, without what was deleted."),
    ] = False,
) -> None:
    """Take images or captions out of an index; all of those named, or none if one isn't there.

    A deletion is a small entry: the space comes back with --compact, which may be given alone.
    """
    from hat_export.errors import InputError
    from hat_export.index.query import open_index_file

    names = [*(ids or ()), *common.read_lines(listed or [])]
    if not names and not compact:
        raise InputError("nothing to delete; expected names, --listed FILE or --compact")
    with open_index_file(index) as opened:
        opened.remove(names)
        if compact:
            opened.compact()
        left = f"{len(opened)} {opened.kind} left"
        freed = opened.file.deleted_bytes
    size = index.stat().st_size / 1e6
    unused = f", {freed / 1e6:.1f} MB of it unused" if freed else ""
    print(f"{index}: {len(set(names))} deleted; {left}, {size:.1f} MB{unused}")


COMMAND = Command(
    "index-delete",
    index_delete_command,
    examples=(
        "hat-export index-delete photos.hatidx beach.jpg train.jpg",
        "hat-export index-delete photos.hatidx --listed old.txt --compact",
    ),
)
