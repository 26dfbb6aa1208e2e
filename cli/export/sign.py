"""``hat-export sign``: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli.command import Command
from hat_export.cli.options import Panel, own_option


def sign_command(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path, own_option("--key", Panel.data, "Secret key, from `hat-export keygen`.")],
) -> None:
    """Sign a bundle, after checking that it is intact; --require-signature checks it."""
    from hat_export.bundle.signature import sign_bundle

    print(f"{sign_bundle(bundle, key)}: written")


COMMAND = Command("sign", sign_command, examples=("hat-export sign bundle/ --key release.key",))
