"""Small copies of pictures for pages."""

from __future__ import annotations

import io

from PIL import Image

from hat_export.report.report import Picture


def make_thumbnail(picture: Image.Image, name: str, side: int) -> Picture:
    """A small copy, encoded anew: nothing of the original file gets into a page.

    Args:
        picture: Any mode.
        name: What to call it.
        side: Longest side in pixels; smaller pictures keep their size.
    """
    has_alpha = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    small = picture.convert("RGBA" if has_alpha else "RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, "WEBP", quality=80)
    return Picture(content.getvalue(), "image/webp", name)
