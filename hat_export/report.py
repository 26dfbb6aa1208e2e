"""Reports: one set of tables, shown as text, Markdown, HTML and JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hat_export.errors import InputError
from hat_export.files import write_text

REPORT_VERSION = 1

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--paper:#fff;--line:#d5d9de;--soft:#f4f6f8;
--good:#1a7f37;--bad:#c9252d;--series-1:#2463c7;--series-2:#c2570c;--series-3:#187a5b;
--series-4:#8b3fb5;--series-5:#a8790a;--series-6:#5d6673}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--paper:#16181b;--line:#363b41;
--soft:#202428;--good:#4ac26b;--bad:#ff7b72;--series-1:#79b0ff;--series-2:#ff9f5a;
--series-3:#57cfa3;--series-4:#cf9bf0;--series-5:#e3bb4e;--series-6:#a9b2bd}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;
max-width:70rem;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}
.verdict{border-left:4px solid var(--good);background:var(--soft);padding:.6rem 1rem}
.verdict.failed{border-color:var(--bad)}
.wide{overflow-x:auto}table{border-collapse:collapse}
th,td{border-bottom:1px solid var(--line);padding:.3rem .8rem;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th{background:var(--soft)}
td.long{white-space:normal;text-align:left;min-width:16rem}
.note{opacity:.8;font-size:.9em}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2rem}
.figures>.full{grid-column:1/-1}.full .plot{min-width:45rem}.figures>*{min-width:0}
.plot{max-width:100%;height:auto;font:12px system-ui,sans-serif;fill:var(--ink)}
.plot .grid{stroke:var(--line)}.plot .axis{font-weight:600}
"""

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
class Figure:
    """One plot; shown in HTML only, where everything it holds is in the tables too.

    Attributes:
        title: Heading.
        svg: Markup made by :mod:`hat_export.plots`, which escapes all texts.
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
    """

    kind: str
    title: str
    passed: bool | None
    summary: tuple[str, ...]
    tables: tuple[Table, ...]
    data: Mapping[str, Any]
    figures: tuple[Figure, ...] = ()

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
            head = "| " + " | ".join(table.columns) + " |"
            rule = "|" + " --- |" + " ---: |" * (len(table.columns) - 1)
            rows = ["| " + " | ".join(map(_markdown_cell, row)) + " |" for row in table.rows]
            parts += [f"## {table.title}", "\n".join([head, rule, *rows])]
            parts += [table.note] if table.note else []
        return "\n\n".join(parts) + "\n"

    def to_html(self) -> str:
        """The report as one HTML page that needs nothing from elsewhere."""
        failed = " failed" if self.passed is False else ""
        body = [f"<h1>{html.escape(self.title)}</h1>", f'<div class="verdict{failed}">']
        body += [f"<div>{html.escape(line)}</div>" for line in self.summary]
        body.append("</div>")
        if self.figures:
            body.append(f'<div class="figures">{"".join(map(_html_figure, self.figures))}</div>')
        for table in self.tables:
            body.append(f"<h2>{html.escape(table.title)}</h2>")
            body.append(_html_table(table))
            if table.note:
                body.append(f'<p class="note">{html.escape(table.note)}</p>')
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


def _html_figure(figure: Figure) -> str:
    note = f'<p class="note">{html.escape(figure.note)}</p>' if figure.note else ""
    title = f"<h2>{html.escape(figure.title)}</h2>"
    full = ' class="full"' if figure.full else ""
    return f'<section{full}>{title}<div class="wide">{figure.svg}</div>{note}</section>'


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        parts = []
        for cell in cells:
            kind = ' class="long"' if tag == "td" and len(cell) > LONG_CELL else ""
            parts.append(f"<{tag}{kind}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    rows = "\n".join(row(cells, "td") for cells in table.rows)
    return f'<div class="wide"><table>{row(table.columns, "th")}\n{rows}</table></div>'
