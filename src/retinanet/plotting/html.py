"""One HTML file that opens anywhere, without a network: text, tables, figures and pictures inside it."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #22262b; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d9dce1; }
nav a { margin-right: 1.2rem; } p.about, figcaption, p.note { color: #5b626b; font-size: .9rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #eceef1; vertical-align: top; }
td.number, th.number { text-align: right; } figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
pre { white-space: pre-wrap; background: #f6f7f8; padding: .7rem 1rem; }
"""


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: headings.
        rows: as many entries each; numbers are set to the right, floats with three decimals, NaN as a dash.
        note: a sentence below it.
    """

    columns: tuple[str, ...]
    rows: Sequence[Sequence[object]]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title: its heading.
        text: paragraphs, with an empty line between; lines that begin with four spaces are shown as they are.
        tables: below the text.
        figures: (caption, figure), below the tables.
        pictures: (caption, picture), below the figures.
    """

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    figures: Sequence[tuple[str, Figure]] = ()
    pictures: Sequence[tuple[str, Image.Image]] = ()


def write_html(path: str | Path, title: str, sections: Sequence[Section], about: Mapping[str, object]) -> Path:
    """Write a report; a reader never sees half of it.

    Args:
        path: the file; missing folders are made.
        title: of the page.
        sections: in order.
        about: what the report is of, such as the model, the data and the version.

    Returns:
        The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = " · ".join(f"{html.escape(str(key))}: {html.escape(str(value))}" for key, value in about.items())
    links = "".join(f'<a href="#part{i}">{html.escape(one.title)}</a>' for i, one in enumerate(sections))
    body = "\n".join(_section(one, f"part{i}") for i, one in enumerate(sections))
    text = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>\n'
        f'<h1>{html.escape(title)}</h1><p class="about">{facts}</p><nav>{links}</nav>\n{body}\n</body></html>\n'
    )
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)
    return path


def _section(section: Section, anchor: str) -> str:
    parts = [f'<h2 id="{anchor}">{html.escape(section.title)}</h2>', _paragraphs(section.text)]
    parts += [_table(table) for table in section.tables]
    parts += [_image(caption, _figure_bytes(figure), "png") for caption, figure in section.figures]
    parts += [_image(caption, _picture_bytes(picture), "jpeg") for caption, picture in section.pictures]
    return "\n".join(part for part in parts if part)


def _paragraphs(text: str) -> str:
    blocks = [block for block in text.split("\n\n") if block.strip()]
    return "\n".join(
        f"<pre>{html.escape(block)}</pre>" if block.startswith("    ") else f"<p>{html.escape(block)}</p>"
        for block in blocks
    )


def _table(table: Table) -> str:
    numeric = [
        all(isinstance(row[i], int | float) for row in table.rows) and bool(table.rows)
        for i in range(len(table.columns))
    ]
    kinds = [' class="number"' if number else "" for number in numeric]
    heads = "".join(f"<th{kind}>{html.escape(name)}</th>" for name, kind in zip(table.columns, kinds, strict=True))
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{html.escape(_text(cell))}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in table.rows
    )
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}\n</tbody></table>{note}"


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return "–" if cell != cell else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _image(caption: str, data: bytes, kind: str) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    words = html.escape(caption)
    return f'<figure><img src="{source}" alt="{words}"><figcaption>{words}</figcaption></figure>'


def _figure_bytes(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130, facecolor="white")
    return stream.getvalue()


def _picture_bytes(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.convert("RGB").save(stream, format="JPEG", quality=88)
    return stream.getvalue()
