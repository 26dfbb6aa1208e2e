"""``hat-export keygen``: a pair of keys to sign bundles with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hat_export.cli.command import Command


def keygen_command(
    key: Annotated[Path, typer.Argument(help="Secret key to write; KEY.pub is the public one.")],
) -> None:
    """Make a pair of keys for `hat-export sign`, in minisign's format."""
    from hat_export.bundle.signature import make_keys, public_path

    made = make_keys(key)
    print(f"{key}: secret key {made.name}, without a password: keep it where nobody reads it")
    print(f"{public_path(key)}: public key, for --require-signature")


COMMAND = Command("keygen", keygen_command, examples=("hat-export keygen release.key",))
