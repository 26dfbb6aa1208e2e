"""``hat-export sign``: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def sign(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle.")],
    key: Annotated[Path, typer.Option("--key", help="Secret key, from `hat-export keygen`.")],
) -> None:
    """Sign a bundle, after checking that it is intact; --require-signature checks it."""
    from hat_export.bundle.signature import sign_bundle

    print(f"{sign_bundle(bundle, key)}: written")
