"""Search results as one HTML page with the pictures in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from hat_export.report.pages import render
from hat_export.report.thumbnail import make_thumbnail

#: Longest side of a picture in the page, in pixels.
THUMBNAIL = 320


@dataclass(frozen=True)
class Shown:
    """One result.

    Attributes:
        name: Of the image, or the caption.
        score: Its score.
        picture: The image; None if it can't be shown.
        missing: Why it can't be shown.
    """

    name: str
    score: float
    picture: Image.Image | None = None
    missing: str = ""


@dataclass(frozen=True)
class _Result:
    """One result as the template takes it."""

    parts: tuple[str, ...]
    score: float
    source: str | None
    name: str
    missing: str


def image_gallery(query: str, facts: str, results: Sequence[Shown]) -> str:
    """Images found for a text, as a page that needs nothing from elsewhere."""
    return _page("images.html.jinja", query, facts, None, results)


def caption_page(name: str, picture: Image.Image, facts: str, results: Sequence[Shown]) -> str:
    """Captions found for an image, as a page that needs nothing from elsewhere."""
    return _page("captions.html.jinja", name, facts, _source(picture, name), results)


def _page(
    template: str, title: str, facts: str, source: str | None, results: Sequence[Shown]
) -> str:
    shown = [
        _Result(
            # A path may break behind a slash.
            tuple(result.name.split("/")),
            result.score,
            None if result.picture is None else _source(result.picture, result.name),
            result.name,
            result.missing,
        )
        for result in results
    ]
    return render(template, title=title, facts=facts, source=source, results=shown)


def _source(picture: Image.Image, name: str) -> str:
    return make_thumbnail(picture, name, THUMBNAIL).data_url
