"""One self-contained HTML page: summary, warnings, tables and figures, with no outside request.

The page is built from plain pieces (`Section`, `Table`, `Figure`); what goes into them is the
pipeline's business.  All text is escaped, pictures travel inside as base64.  With `data`
(report_data) an interactive part leads it (report_page); without scripts the rest says the same.
A content security policy forbids the page every request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from thermosphere.runs.report_page import explorer, script, style_sheet

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Figure:
    """A PNG picture with its caption; alt stands in for it where it cannot be seen."""

    png: bytes
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns.  doubtful: indices of rows to draw greyed, with a mark."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    doubtful: Sequence[int] = ()


@dataclass(frozen=True)
class Section:
    """One chapter: warnings, paragraphs, tables, stills, figures, then preformatted text (code)."""

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: str = ""
    folded: bool = field(default=False)  # code shown only on request
    stills: Sequence[Figure] = ()  # figures of what the interactive part shows, folded beside it


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    sections: Sequence[Section],
    summary: Sequence[str] = (),
    warnings: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> None:
    """Write the page to `path`, atomically.

    summary: paragraphs on what was run.  warnings: what a reader must know before any number,
    at the top.  data: of `report_data`, for the interactive part; None for a page without.
    ValueError for a row whose length differs from its table's columns, or a figure
    that is not a PNG.
    """
    for section in sections:
        for table in section.tables:
            _check_table("write_report", table)
        for figure in (*section.stills, *section.figures):
            if not figure.png.startswith(PNG_SIGNATURE):
                raise ValueError(
                    f"write_report: figure {figure.caption[:40]!r} must be a PNG, "
                    f"got bytes starting {figure.png[:8]!r}"
                )
    page = _page(title, sections, summary, warnings, data).encode()
    target = Path(path)
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".html", delete=False) as file:
        file.write(page)
    os.chmod(file.name, 0o644)
    os.replace(file.name, target)


def format_table(table: Table) -> str:
    """The table as aligned text for a terminal; doubtful rows end with an asterisk."""
    _check_table("format_table", table)
    lines = [list(table.columns), *(list(row) for row in table.rows)]
    widths = [max(_width(line[column]) for line in lines) for column in range(len(table.columns))]
    text = []
    for number, line in enumerate(lines):
        cells = [" " * (w - _width(cell)) + cell for cell, w in zip(line, widths, strict=True)]
        text.append("  ".join(cells) + (" *" if number - 1 in table.doubtful else ""))
        if number == 0:
            text.append("  ".join("─" * width for width in widths))
    return "\n".join(text)


def _width(text: str) -> int:
    """Terminal columns of a text: the tilde of P̃ and the hat of R̂ take none."""
    return sum(1 for character in text if not unicodedata.combining(character))


def _check_table(function: str, table: Table) -> None:
    for index, row in enumerate(table.rows):
        if len(row) != len(table.columns):
            raise ValueError(
                f"{function}: row {index} of table {table.caption[:40]!r} must have "
                f"{len(table.columns)} cells, got {len(row)}"
            )


def _page(
    title: str,
    sections: Sequence[Section],
    summary: Sequence[str],
    warnings: Sequence[str],
    data: Mapping[str, Any] | None,
) -> str:
    names = [(_anchor(index, section.title), section) for index, section in enumerate(sections)]
    contents = "".join(f'<a href="#{name}">{_text(s.title)}</a>' for name, s in names)
    style = style_sheet(interactive=data is not None)
    policy = f"default-src 'none'; img-src data:; base-uri 'none'; style-src {_digest(style)}"
    first = last = ""
    if data is not None:
        code = script()
        policy += f"; script-src {_digest(code)}"
        first = explorer()
        last = (
            f'<script type="application/json" id="study">{_json(data)}</script>\n'
            f"<script>{code}</script>\n"
        )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{_text(title)}</h1>\n{_paragraphs(summary)}{_warnings(warnings)}"
        f"<nav>{contents}</nav>\n</header>\n{first}<main>\n"
        + "".join(_section(name, section) for name, section in names)
        + f"</main>\n{last}</body>\n</html>\n"
    )


def _digest(code: str) -> str:
    """The name by which a content security policy allows exactly this text."""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode("ascii")
    return f"'sha256-{digest}'"


def _json(data: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _section(name: str, section: Section) -> str:
    parts = [f'<section id="{name}">\n<h2>{_text(section.title)}</h2>\n']
    parts.append(_warnings(section.warnings))
    parts.append(_paragraphs(section.text))
    parts.extend(_table(table) for table in section.tables)
    if section.stills:  # open where there is no script to close it
        label = f"<summary>Still pictures ({len(section.stills)})</summary>\n"
        stills = f"{label}{_figures(section.stills)}"
        parts.append(f'<details class="still" open>\n{stills}</details>\n')
    if section.figures:
        parts.append(_figures(section.figures))
    if section.code:
        code = f"<pre>{_text(section.code)}</pre>\n"
        folded = f"<details>\n<summary>Show</summary>\n{code}</details>\n"
        parts.append(folded if section.folded else code)
    parts.append("</section>\n")
    return "".join(parts)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    rows = []
    for index, row in enumerate(table.rows):
        mark = ' class="doubtful"' if index in table.doubtful else ""
        first = "".join(f'<th scope="row">{_text(cell)}</th>' for cell in row[:1])
        rest = "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        rows.append(f"<tr{mark}>{first}{rest}</tr>\n")
    caption = f"<caption>{_text(table.caption)}</caption>\n" if table.caption else ""
    return (
        f'<div class="scroll" tabindex="0">\n<table>\n{caption}<thead>\n<tr>{head}</tr>\n</thead>\n'
        f"<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n"
    )


def _figures(figures: Sequence[Figure]) -> str:
    return f'<div class="figures">\n{"".join(_figure(figure) for figure in figures)}</div>\n'


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    alt = _text(figure.alt or figure.caption)
    # Width and height, big-endian in the PNG header, let the page be laid out at once.
    width, height = (int.from_bytes(figure.png[at : at + 4], "big") for at in (16, 20))
    return (
        f'<figure>\n<img src="data:image/png;base64,{data}" alt="{alt}" '
        f'width="{width}" height="{height}">\n'
        f"<figcaption>{_text(figure.caption)}</figcaption>\n</figure>\n"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{_text(warning)}</li>\n" for warning in warnings)
    return (
        '<aside class="warning" role="note">\n<strong>Read with care</strong>\n'
        f"<ul>\n{items}</ul>\n</aside>\n"
    )


def _paragraphs(text: Sequence[str]) -> str:
    return "".join(f"<p>{_text(paragraph)}</p>\n" for paragraph in text)


def _text(text: str) -> str:
    return html.escape(text, quote=True)


def _anchor(index: int, title: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"s{index + 1}-{words}" if words else f"s{index + 1}"
