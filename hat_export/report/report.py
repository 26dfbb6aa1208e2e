"""Reports: one set of tables, shown as text, Markdown, HTML and JSON."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_export.base.files import write_text
from hat_export.errors import InputError

REPORT_VERSION = 1

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--line:#d5d9de;--soft:#f4f6f8;
--faint:#5b6570;--good:#1a7f37;--bad:#c9252d;--doubt:#9a6700;--plain:#5b6570;
--series-1:#2463c7;--series-2:#c2570c;--series-3:#187a5b;
--series-4:#8b3fb5;--series-5:#a8790a;--series-6:#5d6673}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--paper:#16181b;--line:#363b41;
--soft:#202428;--faint:#9aa4ae;--good:#4ac26b;--bad:#ff7b72;--doubt:#d4a72c;--plain:#9aa4ae;
--series-1:#79b0ff;--series-2:#ff9f5a;
--series-3:#57cfa3;--series-4:#cf9bf0;--series-5:#e3bb4e;--series-6:#a9b2bd}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:84rem;padding:0 1rem;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
h3{font-size:.95rem;margin:0 0 .6rem}h4{font-size:.85rem;margin:0 0 .3rem;color:var(--faint)}
.verdict{border-left:4px solid var(--plain);background:var(--soft);padding:.6rem 1rem}
.verdict p{margin:.2rem 0}
.passed{border-color:var(--good)}.passed strong{color:var(--good)}
.failed{border-color:var(--bad)}.failed strong{color:var(--bad)}
.undecided{border-color:var(--doubt)}.undecided strong{color:var(--doubt)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{border-bottom:1px solid var(--line);padding:.3rem .6rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{background:var(--soft)}
th.text,td.text{text-align:left}td.long{white-space:normal;min-width:12rem}
.note{color:var(--faint);font-size:.9em;max-width:60rem}
.card{border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;margin:.8rem 0;
display:grid;grid-template-columns:minmax(9rem,1fr) 2fr 2fr;gap:.4rem 1.4rem}
.card h3{grid-column:1/-1}
.items{display:flex;flex-wrap:wrap;gap:.6rem}
figure{margin:0;width:7rem;border-top:3px solid transparent;padding-top:.25rem}
figure.right{border-color:var(--good)}
figure.text{width:100%;border-top:0;border-left:3px solid transparent;padding:0 0 0 .5rem}
figure.text.right{border-color:var(--good)}
figure img{width:6rem;height:6rem;object-fit:contain;background:#fff;border-radius:4px;
border:1px solid var(--line);display:block}
figcaption{font-size:.85rem;line-height:1.35}figcaption small{color:var(--faint)}
.right figcaption b{color:var(--good)}
@media (max-width:45rem){body{margin:1rem auto}.card{grid-template-columns:1fr}
figure{width:6rem}figure img{width:5.4rem;height:5.4rem}}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2rem}
.figures>.full{grid-column:1/-1}.full .plot{min-width:45rem}.figures>*{min-width:0}
.plot{max-width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--ink)}
.plot .grid{stroke:var(--line)}.plot .axis{font-weight:600}
"""

#: A column with a longer cell than this holds text, aligned to the left, in characters.
TEXT_CELL = 24
#: A table cell longer than this is wrapped, in characters.
LONG_CELL = 60


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: Heading.
        columns: Column heads.
        rows: Cells as text.
        note: What the reader has to know of it; may be empty.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """An image file inside a report.

    Attributes:
        content: The file.
        media_type: Its type, such as ``image/webp``.
        name: What it shows.
    """

    content: bytes
    media_type: str
    name: str

    @property
    def data_url(self) -> str:
        """The picture as an address that holds it."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Item:
    """One query or answer in a gallery.

    Attributes:
        text: What it is.
        note: What the reader has to know of it; may be empty.
        picture: Shown above the text, if there is one.
        right: Whether it is marked as a right answer.
    """

    text: str
    note: str = ""
    picture: Picture | None = None
    right: bool = False


@dataclass(frozen=True)
class Card:
    """One entry of a gallery: something asked, and lists of answers beside it.

    Attributes:
        title: Heading.
        query: What was asked.
        answers: Lists of answers with their headings.
    """

    title: str
    query: Item
    answers: tuple[tuple[str, tuple[Item, ...]], ...]


@dataclass(frozen=True)
class Gallery:
    """Examples to look at.

    Attributes:
        title: Heading.
        note: What the reader has to know.
        cards: The examples.
    """

    title: str
    note: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Figure:
    """One plot; shown in HTML only, where everything it holds is in the tables too.

    Attributes:
        title: Heading.
        svg: Markup made by :mod:`hat_export.report.plots`, which escapes all texts.
        note: What the reader has to know of it; may be empty.
        full: Whether it needs the page's whole width.
    """

    title: str
    svg: str
    note: str = ""
    full: bool = False


@dataclass(frozen=True)
class Report:
    """A finished report.

    Attributes:
        kind: Such as ``parity`` or ``latency``; with :data:`REPORT_VERSION` it fixes ``data``.
        title: Heading.
        passed: Whether what was judged passed; None where nothing was judged.
        summary: The result in a few sentences.
        tables: What to show.
        data: Everything measured, as JSON values.
        figures: Plots; shown between summary and tables.
        galleries: Examples, shown where pictures can be; their facts belong into ``data`` too.
        undecided: Whether there was something to judge that could not be judged.
    """

    kind: str
    title: str
    passed: bool | None
    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    data: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()
    galleries: tuple[Gallery, ...] = ()
    undecided: bool = False

    def to_json(self) -> str:
        """The report as JSON text."""
        content = {
            "kind": self.kind,
            "version": REPORT_VERSION,
            "title": self.title,
            "passed": self.passed,
            "summary": list(self.summary),
            "data": self.data,
        }
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The report as Markdown text."""
        parts = [f"# {self.title}", *self.summary]
        for table in self.tables:
            head = "| " + " | ".join(map(_markdown_cell, table.columns)) + " |"
            rule = "|" + " --- |" + " ---: |" * (len(table.columns) - 1)
            rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in table.rows]
            parts += [f"## {table.title}", "\n".join([head, rule, *rows])]
            parts += [table.note] if table.note else []
        for gallery in self.galleries:
            parts += [f"## {gallery.title}", gallery.note]
            for card in gallery.cards:
                parts += [f"### {card.title}", f"Asked: {_markdown_item(card.query)}"]
                for heading, answers in card.answers:
                    listed = "\n".join(f"- {_markdown_item(answer)}" for answer in answers)
                    parts.append(f"{heading}:\n\n{listed}")
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing from elsewhere."""
        verdict = {True: "passed", False: "failed", None: "unjudged"}[self.passed]
        verdict = "undecided" if self.undecided else verdict
        first, *others = self.summary or ("",)
        body = [f"<h1>{html.escape(self.title)}</h1>", f'<div class="verdict {verdict}">']
        body.append(f"<p><strong>{html.escape(first)}</strong></p>")
        body += [f"<p>{html.escape(line)}</p>" for line in others]
        body.append("</div>")
        if self.figures:
            body.append(f'<div class="figures">{"".join(map(_html_figure, self.figures))}</div>')
        for table in self.tables:
            body.append(f"<h2>{html.escape(table.title)}</h2>")
            body.append(_html_table(table))
            if table.note:
                body.append(f'<p class="note">{html.escape(table.note)}</p>')
        body += [_html_gallery(gallery) for gallery in self.galleries]
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head><body>\n"
            + "\n".join(body)
            + "\n</body></html>\n"
        )


def write_report(report: Report, path: Path) -> None:
    """Write a report in the format that the file name asks for.

    Args:
        report: The report.
        path: Ends in ``.json``, ``.md`` or ``.html``.

    Raises:
        InputError: on another ending.
        OutputError: if the file can't be written.
    """
    write_text(path, _FORMATS[check_report_path(path)](report))


def check_report_path(path: Path) -> str:
    """The format that a file name asks for; InputError if there is none."""
    if path.suffix not in _FORMATS:
        raise InputError(f"{path}: a report ends in {', '.join(_FORMATS)}")
    return path.suffix


_FORMATS = {".json": Report.to_json, ".md": Report.to_markdown, ".html": Report.to_html}


def _markdown_cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_item(item: Item) -> str:
    mark = " **(right)**" if item.right else ""
    note = f" ({_markdown_cell(item.note)})" if item.note else ""
    return f"{_markdown_cell(item.text)}{mark}{note}"


def _html_figure(figure: Figure) -> str:
    note = f'<p class="note">{html.escape(figure.note)}</p>' if figure.note else ""
    title = f"<h2>{html.escape(figure.title)}</h2>"
    full = ' class="full"' if figure.full else ""
    return f'<section{full}>{title}<div class="wide">{figure.svg}</div>{note}</section>'


def _html_table(table: Table) -> str:
    text = [
        any(len(row[number]) > TEXT_CELL for row in table.rows)
        for number in range(len(table.columns))
    ]

    def row(cells: Sequence[str], tag: str) -> str:
        parts = []
        for cell, is_text in zip(cells, text, strict=True):
            kinds = ["text"] * is_text + ["long"] * (tag == "td" and len(cell) > LONG_CELL)
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            parts.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    return f'<div class="wide"><table>{row(table.columns, "th")}\n{rows}</table></div>'


def _html_gallery(gallery: Gallery) -> str:
    parts = [f"<h2>{html.escape(gallery.title)}</h2>"]
    parts.append(f'<p class="note">{html.escape(gallery.note)}</p>')
    for card in gallery.cards:
        parts.append(f'<section class="card"><h3>{html.escape(card.title)}</h3>')
        for heading, items in (("Asked", (card.query,)), *card.answers):
            shown = "".join(map(_html_item, items))
            parts.append(
                f'<div><h4>{html.escape(heading)}</h4><div class="items">{shown}</div></div>'
            )
        parts.append("</section>")
    return "\n".join(parts)


def _html_item(item: Item) -> str:
    kinds = ("right" if item.right else "", "" if item.picture else "text")
    picture = ""
    if item.picture:
        source = html.escape(item.picture.data_url)
        name = html.escape(item.picture.name)
        picture = f'<img src="{source}" alt="{name}">'
    mark = "<b>\u2713 right</b> " if item.right else ""
    note = f"<br><small>{html.escape(item.note)}</small>" if item.note else ""
    return (
        f'<figure class="{" ".join(filter(None, kinds))}">{picture}'
        f"<figcaption>{mark}{html.escape(item.text)}{note}</figcaption></figure>"
    )
