"""Search results as one HTML page with the pictures in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from hat_export.report.thumbnail import thumbnail

#: Longest side of a picture in the page, in pixels.
THUMBNAIL = 320

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--line:#d5d9de;--soft:#f4f6f8;
--quiet:#5c6670}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--paper:#16181b;--line:#363b41;
--soft:#202428;--quiet:#9aa4ae}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);
margin:2rem auto;max-width:90rem;padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .2rem;overflow-wrap:anywhere}
.facts{color:var(--quiet);margin:0 0 1.5rem}
ol{list-style:none;margin:0;padding:0;display:grid;gap:1rem;
grid-template-columns:repeat(auto-fill,minmax(min(100%,10rem),1fr))}
ol.wide{grid-template-columns:1fr;gap:0;max-width:50rem}
li{border:1px solid var(--line);border-radius:.5rem;overflow:hidden;background:var(--soft)}
ol.wide li{border-width:0 0 1px;border-radius:0;background:none;display:flex}
.picture{aspect-ratio:1;display:flex;align-items:center;justify-content:center;background:#fff}
.picture img{width:100%;height:100%;object-fit:contain}
.missing{background:none;color:var(--quiet);padding:1rem;text-align:center}
.text{padding:.5rem .7rem;overflow-wrap:anywhere}
.rank{font-weight:600}.score{float:right;color:var(--quiet);font-variant-numeric:tabular-nums}
ol.wide .text{flex:1}ol.wide .score{float:none;padding:.5rem .7rem}
.query{max-width:20rem;border:1px solid var(--line);border-radius:.5rem;margin:0 0 1.5rem;
background:#fff}
@media (max-width:30rem){body{margin:1rem auto}ol{gap:.6rem;
grid-template-columns:repeat(2,minmax(0,1fr))}}
"""


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


def image_gallery(query: str, facts: str, results: Sequence[Shown]) -> str:
    """Images found for a text, as a page that needs nothing from elsewhere."""
    items = []
    for rank, result in enumerate(results, start=1):
        if result.picture is None:
            missing = html.escape(result.missing)
            picture = f'<div class="picture missing">{missing}</div>'
        else:
            alternative = html.escape(result.name)
            picture = (
                f'<div class="picture"><img src="{_source(result.picture, result.name)}" '
                f'alt="{alternative}"></div>'
            )
        items.append(
            f'<li>{picture}<div class="text"><span class="score">{result.score:.4f}</span>'
            f'<span class="rank">{rank}.</span> {_path(result.name)}</div></li>'
        )
    return _page(query, facts, "", f"<ol>{''.join(items)}</ol>")


def caption_page(name: str, picture: Image.Image, facts: str, results: Sequence[Shown]) -> str:
    """Captions found for an image, as a page that needs nothing from elsewhere."""
    items = "".join(
        f'<li><div class="text"><span class="rank">{rank}.</span> {html.escape(result.name)}</div>'
        f'<span class="score">{result.score:.4f}</span></li>'
        for rank, result in enumerate(results, start=1)
    )
    shown = f'<img class="query" src="{_source(picture, name)}" alt="{html.escape(name)}">'
    return _page(name, facts, shown, f'<ol class="wide">{items}</ol>')


def _path(name: str) -> str:
    """A name, escaped, that may break behind a slash."""
    return html.escape(name).replace("/", "/<wbr>")


def _source(picture: Image.Image, name: str) -> str:
    return html.escape(thumbnail(picture, name, THUMBNAIL).data_url)


def _page(title: str, facts: str, before: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="facts">{html.escape(facts)}</p>\n'
        f"{before}{body}\n</body></html>\n"
    )
