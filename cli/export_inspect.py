"""``hat-export inspect``: a look into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common


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
