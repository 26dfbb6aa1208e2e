"""hat-export: trained HAT models in production, fast, small and provably as good as in PyTorch.

    import hat_export

    model = hat_export.load("hat.ckpt")              # the PyTorch reference
    session = hat_export.open_bundle("bundle/")      # ONNX Runtime, no torch needed

Both have the same verbs: ``encode_images``, ``encode_texts`` and ``score``. Whether one retrieves
what the other does, ``hat_export.check_parity`` tells.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hat_export.api import check_parity, load, open_bundle

__all__ = ["check_parity", "load", "open_bundle"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the API on first use, so that ``hat-export --help`` need not wait for numpy."""
    if name in __all__:
        from hat_export import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
