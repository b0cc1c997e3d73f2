"""Reports: tables that print on a terminal, as Markdown and as HTML, and one page that opens without a network.

A page begins with its verdict and key numbers, then shows pictures of what is worst; everything else is folded below.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from retinanet.errors import make_printable
from retinanet.files import write_atomically

if TYPE_CHECKING:  # tables are printed without loading matplotlib
    from matplotlib.figure import Figure
    from PIL import Image
    from rich.table import Table as RichTable

State = Literal["good", "fair", "bad", "plain"]

MOST_UNFOLDED = 30  # letters of a text that a terminal shows in one line


@dataclass(frozen=True)
class Table:
    """A table. ``rich.print`` shows it, and so does ``print``."""

    columns: Sequence[str]  # headings
    # as many entries each; see :func:`format_number` for numbers. Columns of numbers are set to the right.
    rows: Sequence[Sequence[object]]
    note: str = ""  # a sentence below it
    digits: int | Sequence[int] = 3  # decimals of floats, one number for all columns or one for each
    point: str = ""  # what it says in a line, which a page shows while the table is folded

    @property
    def cells(self) -> list[list[str]]:
        """The text of every entry, row by row."""
        digits = [self.digits] * len(self.columns) if isinstance(self.digits, int) else self.digits
        return [[format_number(cell, places) for cell, places in zip(row, digits, strict=True)] for row in self.rows]

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds nothing but numbers, or None for unknown ones."""
        return [
            any(isinstance(row[i], int | float) for row in self.rows)
            and all(row[i] is None or isinstance(row[i], int | float) for row in self.rows)
            for i in range(len(self.columns))
        ]

    def __rich__(self) -> RichTable:
        """For a terminal. Headings of numbers and columns of long texts are folded where it is narrow."""
        from rich.box import SIMPLE
        from rich.table import Table as RichTable
        from rich.text import Text

        note = Text(self.note) if self.note else None
        table = RichTable(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0), caption=note, caption_justify="left")
        for heading, numeric, *cells in zip(self.columns, self.numeric, *self.cells, strict=True):
            table.add_column(
                Text(heading),
                justify="right" if numeric else "left",
                min_width=max(map(len, (*heading.split(), *cells)), default=0) if numeric else None,
                no_wrap=not numeric and max(map(len, (heading, *cells))) <= MOST_UNFOLDED,
                overflow="fold",
            )
        for row in self.cells:
            table.add_row(*map(Text, row))  # Text: names may hold brackets, which are markup in a plain string
        return table

    def __str__(self) -> str:
        return render_text(self)

    def to_markdown(self) -> str:
        """The table as Markdown, numbers to the right, without a newline at its end."""
        rules = ["---:" if numeric else "---" for numeric in self.numeric]
        rows = [self.columns, rules, *self.cells]
        lines = ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in rows]
        return "\n".join([*lines, "", self.note] if self.note else lines)


@dataclass(frozen=True)
class Section:
    """A part of a report. A page folds its tables, figures and pictures, each below a line that says its point."""

    title: str  # its heading
    text: str = ""  # paragraphs, with an empty line between; one that begins with four spaces is shown as it is
    tables: Sequence[Table] = ()  # below the text
    figures: Sequence[tuple[str, Figure]] = ()  # (caption, figure), below the tables
    pictures: Sequence[tuple[str, Image.Image]] = ()  # (caption, picture), below the figures
    point: str = ""  # what it says in a sentence; where there is one, the text is folded too


class Picture(NamedTuple):
    """A picture among the first things on a page."""

    title: str  # what it shows
    text: str  # where it is from: the file and the box
    image: Image.Image
    columns: int = 2  # how wide it is shown: of six that a page has
    rows: int = 1  # how many of smaller pictures stand beside it


class KeyNumber(NamedTuple):
    """A number that is shown large."""

    label: str
    value: str  # with its unit
    note: str = ""
    state: State = "plain"  # its colour


class Point(NamedTuple):
    """A sentence of a verdict."""

    about: str  # what it answers, in a word or two
    sentence: str
    command: str = ""  # for a shell, which does what the sentence says


@dataclass(frozen=True)
class Verdict:
    """What a reader has to know, first on a page."""

    state: State  # its colour; the words say the same
    headline: str  # the answer in a sentence
    points: Sequence[Point] = ()  # about two sentences more
    numbers: Sequence[KeyNumber] = ()  # four to six
    # (label, value, reason) of what is to come, as a table below; none is shown without rows.
    plan: Sequence[tuple[str, str, str]] = ()

    def summary(self) -> str:
        """The headline and the points for a terminal, a line each."""
        points = [" ".join(filter(None, (f"{about}: {sentence}", command))) for about, sentence, command in self.points]
        return "\n".join([f"verdict: {self.headline}", *points])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "state": self.state,
            "headline": self.headline,
            "points": [point._asdict() for point in self.points],
            "numbers": [number._asdict() for number in self.numbers],
            "plan": [{"label": label, "value": value, "reason": reason} for label, value, reason in self.plan],
        }


def format_number(value: object, digits: int = 3) -> str:
    """An entry of a table as text: 12345 is "12,345", 0.5 is "0.500", None and NaN are "-", text is itself."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else make_printable(value)


def format_time(seconds: float) -> str:
    """A time as a person says it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours / 24:.1f} days"


def format_percent(share: float) -> str:
    """A share with two digits as text: 0.1234 is "12 %", 0.0123 is "1.2 %", NaN is "-"."""
    percent = 100 * share
    if math.isnan(percent):
        return "-"
    if 0 < percent < 0.01:
        return "<0.01 %"
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.2g} %"


def render_text(renderable: object, width: int = 100) -> str:
    """What ``rich.print`` shows, as plain text of at most ``width`` columns, without trailing space."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width, color_system=None).print(renderable)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).rstrip()


def write_report(
    folder: Path,
    names: Sequence[str],
    title: str,
    sections: Sequence[Section],
    about: Mapping[str, object],
    numbers: Mapping[str, Any],
    verdict: Verdict,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write a page with everything inside one file, and the same numbers as JSON, each whole or not at all.

    Args:
        folder: made if need be; see :func:`~retinanet.files.check_output_folder` for what is checked before.
        names: of the page and of the JSON file; further names are ignored.
        title: of the page.
        sections: of the page, in order.
        about: what the report is of, such as the model, the data and the version.
        numbers: the same as plain values, without NaN.
        verdict: what comes first on the page, and is among the numbers.
        pictures: what comes next on the page.

    Raises:
        UserError: the folder cannot be written.
    """
    page = render_page(title, sections, about, verdict, pictures)
    write_atomically(folder / names[0], page.encode("utf-8", errors="replace"))  # UTF-8 cannot hold all names of files
    text = json.dumps({"about": dict(about), "verdict": verdict.to_dict(), **numbers}, indent=1, allow_nan=False)
    write_atomically(folder / names[1], text + "\n")


def render_page(
    title: str,
    sections: Sequence[Section],
    about: Mapping[str, object],
    verdict: Verdict | None = None,
    pictures: Sequence[Picture] = (),
) -> str:
    """The page of a report, as HTML; see :func:`write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # predict without torch has no use for it

    environment = Environment(
        loader=PackageLoader("retinanet", "plotting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = _make_address
    return environment.get_template("report.html.jinja").render(
        title=title, sections=sections, about=about, verdict=verdict, pictures=pictures
    )


def _make_address(image: Figure | Image.Image) -> str:
    """An address that holds a whole figure (as PNG) or picture (as JPEG)."""
    stream, kind = io.BytesIO(), "png" if hasattr(image, "savefig") else "jpeg"
    if hasattr(image, "savefig"):
        image.savefig(stream, format=kind, dpi=130, facecolor="white")
    else:
        image.convert("RGB").save(stream, format=kind, quality=86, optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
