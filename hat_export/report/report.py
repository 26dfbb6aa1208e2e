"""Reports: one set of tables, shown as text, Markdown, HTML and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_export.base.files import write_text
from hat_export.errors import InputError

REPORT_VERSION = 1

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

    @property
    def text_columns(self) -> tuple[bool, ...]:
        """Per column, whether it holds text, aligned to the left, and not figures."""
        return tuple(
            any(len(row[number]) > TEXT_CELL for row in self.rows)
            for number in range(len(self.columns))
        )


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
        from hat_export.report.pages import render

        return render("report.html.jinja", report=self, long_cell=LONG_CELL)

    @property
    def verdict(self) -> str:
        """``passed``, ``failed``, ``undecided``, or ``unjudged`` where nothing was judged."""
        if self.undecided:
            return "undecided"
        return {True: "passed", False: "failed", None: "unjudged"}[self.passed]


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
