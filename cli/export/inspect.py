"""``hat-export inspect``: a look into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli import common
from hat_export.cli.command import Command
from hat_export.cli.options import SignatureOption, option


def inspect_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    as_json: Annotated[bool, option("--json", ": the manifest")] = False,
    verify: Annotated[bool, option("--verify")] = True,
    require_signature: SignatureOption = None,
) -> None:
    """Show what is inside a bundle, after checking that it is intact."""
    import json

    from hat_export.bundle.bundle import Bundle
    from hat_export.bundle.inspect import bundle_report

    common.require_signature(require_signature, bundle)
    opened = Bundle.read(bundle, verify)
    if as_json:
        print(json.dumps(opened.manifest.to_json(), indent=1, ensure_ascii=False))
        return
    common.show(bundle_report(opened, verify))


COMMAND = Command(
    "inspect",
    inspect_command,
    examples=("hat-export inspect bundle/", "hat-export inspect bundle/ --json"),
)
