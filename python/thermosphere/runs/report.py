"""One self-contained HTML page: summary, warnings, tables and figures, with no outside request.

The page is built from plain pieces (`Section`, `Table`, `Figure`); what goes into them is the
pipeline's business.  All text is escaped, pictures travel inside as base64.
"""

from __future__ import annotations

import base64
import html
import os
import re
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
    """One chapter: warnings, paragraphs, tables, figures, then preformatted text (code)."""

    title: str
    text: Sequence[str] = ()
    warnings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    code: str = ""
    folded: bool = field(default=False)  # code shown only on request


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    sections: Sequence[Section],
    summary: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> None:
    """Write the page to `path`, atomically.

    summary: paragraphs on what was run.  warnings: what a reader must know before any number,
    at the top.  ValueError for a row whose length differs from its table's columns, or a figure
    that is not a PNG.
    """
    for section in sections:
        for table in section.tables:
            _check_table("write_report", table)
        for figure in section.figures:
            if not figure.png.startswith(PNG_SIGNATURE):
                raise ValueError(
                    f"write_report: figure {figure.caption[:40]!r} must be a PNG, "
                    f"got bytes starting {figure.png[:8]!r}"
                )
    page = _page(title, sections, summary, warnings).encode()
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
    title: str, sections: Sequence[Section], summary: Sequence[str], warnings: Sequence[str]
) -> str:
    names = [(_anchor(index, section.title), section) for index, section in enumerate(sections)]
    contents = "".join(f'<a href="#{name}">{_text(s.title)}</a>' for name, s in names)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE_SHEET}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{_text(title)}</h1>\n{_paragraphs(summary)}{_warnings(warnings)}"
        f"<nav>{contents}</nav>\n</header>\n<main>\n"
        + "".join(_section(name, section) for name, section in names)
        + "</main>\n</body>\n</html>\n"
    )


def _section(name: str, section: Section) -> str:
    parts = [f'<section id="{name}">\n<h2>{_text(section.title)}</h2>\n']
    parts.append(_warnings(section.warnings))
    parts.append(_paragraphs(section.text))
    parts.extend(_table(table) for table in section.tables)
    if section.figures:
        figures = "".join(_figure(figure) for figure in section.figures)
        parts.append(f'<div class="figures">\n{figures}</div>\n')
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


STYLE_SHEET = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1c1f23; --soft: #5c646e; --line: #d8dce1; --panel: #f5f6f8;
  --link: #0b5cad; --warning: #fff4e0; --warning-line: #d98a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181b; --ink: #e6e8ea; --soft: #a0a8b1; --line: #363b42; --panel: #1f2226;
    --link: #7db8f2; --warning: #33291a; --warning-line: #d98a00;
  }
}
* { box-sizing: border-box; }
html { font-size: clamp(16px, 0.45vw + 11.5px, 20px); }
body {
  margin: 0 auto; padding: 1rem clamp(0.8rem, 2.5vw, 3rem) 3rem; max-width: 120rem;
  background: var(--paper); color: var(--ink);
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  line-height: 1.5; overflow-wrap: break-word;
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0.4rem 0 0.8rem; }
h2 {
  font-size: 1.3rem; margin: 2.4rem 0 0.6rem; padding-top: 0.6rem;
  border-top: 1px solid var(--line);
}
p { margin: 0 0 0.7rem; max-width: 46rem; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; margin-top: 1rem; }
nav a { padding: 0.25rem 0; }
.warning {
  background: var(--warning); border-left: 0.3rem solid var(--warning-line); border-radius: 0.3rem;
  padding: 0.7rem 1rem; margin: 0.8rem 0 1rem; max-width: 60rem;
}
.warning ul { margin: 0.3rem 0 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: 0.4rem 0 1.2rem; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: 0.4rem; }
th, td { padding: 0.35rem 0.6rem; text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--line); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--panel); }
tbody th { font-weight: 600; text-align: left; position: sticky; left: 0; background: inherit; }
thead th:first-child { text-align: left; position: sticky; left: 0; background: var(--paper); }
tbody tr { background: var(--paper); }
.doubtful { color: var(--soft); font-style: italic; }
.figures {
  display: grid; gap: 1.2rem; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr));
}
figure { margin: 0; background: var(--panel); border-radius: 0.5rem; padding: 0.6rem; }
figure img {
  display: block; width: 100%; max-width: 810px; height: auto; margin: 0 auto;
  background: #ffffff; border-radius: 0.3rem;
}
figcaption { color: var(--soft); font-size: 0.9rem; padding: 0.5rem 0.2rem 0.1rem; }
pre {
  background: var(--panel); border-radius: 0.4rem; padding: 0.8rem 1rem; overflow-x: auto;
  font-size: 0.85rem; line-height: 1.4;
}
summary { cursor: pointer; color: var(--link); padding: 0.3rem 0; }
@media print { .scroll { overflow: visible; } figure { break-inside: avoid; } }
"""
