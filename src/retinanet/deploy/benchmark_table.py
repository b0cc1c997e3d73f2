"""The table of a benchmark: on the console, as Markdown and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from retinanet.deploy.measure import Spread
from retinanet.files import make_json_safe, write_atomically
from retinanet.plotting.html import Table, render_text

RESULTS = ("benchmark.json", "benchmark.md")
COLUMNS = (  # heading, decimals
    *(("", 0), ("AP", 4), ("read ms", 1), ("resize ms", 1), ("network ms", 1), ("post ms", 1), ("image ms", 1)),
    *(("times", 2), ("images/s", 2), ("times", 2), ("memory MB", 0), ("files MB", 1)),
)


@dataclass(frozen=True)
class Row:
    """One competitor. Times are medians over the repeats, of one image at a time, in seconds.

    Attributes:
        name: such as ``openvino-int8``.
        ap: on all images of the split, of the very calls that images_per_second times.
        ap50: likewise.
        read: from the file to pixels.
        resize: from pixels to the input of the network.
        network: of the network; with post-processing where that is not known apart.
        postprocess: from raw outputs to detections, or None.
        latency: from the file to detections.
        images_per_second: of many files, end to end, read ahead in threads.
        memory: peak of a process that loads the model and predicts one image at a time, in MB, or None.
        size: of the files, in bytes.
    """

    name: str
    ap: float
    ap50: float
    read: float
    resize: float
    network: float
    postprocess: float | None
    latency: Spread
    images_per_second: float
    memory: float | None
    size: int


@dataclass(frozen=True)
class BenchmarkResult:
    """A benchmark; ``print`` shows it as a table.

    Attributes:
        rows: one for each competitor.
        left_out: name of a competitor -> why it did not take part.
        about: command, model, data, machine, versions, date.
    """

    rows: Sequence[Row]
    left_out: Mapping[str, str]
    about: Mapping[str, str]

    @property
    def reference(self) -> Row:
        """What the others are compared with: torchvision, else torch in fp32, else the first."""
        known = {row.name: row for row in self.rows}
        return known.get("torchvision", known.get("torch-fp32", self.rows[0]))

    def speed(self, row: Row) -> float:
        """How many times as fast one image is as with the reference."""
        return self.reference.latency.median / row.latency.median

    def throughput(self, row: Row) -> float:
        """How many times as many images a second there are as with the reference."""
        return row.images_per_second / self.reference.images_per_second

    def __str__(self) -> str:
        return render_text(self.to_table(), width=110)

    def to_table(self) -> RenderableType:
        """For ``rich.print``."""
        about = "\n".join(f"{key}: {value}" for key, value in self.about.items())
        left_out = "\n".join(["\nleft out", *(f"  {name}: {why}" for name, why in self.left_out.items())])
        return Group(Text(about), self._table(), *([Text(left_out)] if self.left_out else []))

    def to_markdown(self) -> str:
        """A section for a page of results: the command, the machine, the table and what was left out."""
        about = "; ".join(f"{key}: {value}" for key, value in self.about.items() if key != "command")
        parts = [f"`{self.about['command']}`", f"{about}.", self._table().to_markdown()]
        if self.left_out:
            parts += ["Left out:", "\n".join(f"* {name}: {why}" for name, why in self.left_out.items())]
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; times in seconds, sizes in bytes, memory in MB."""
        return {"about": self.about, "rows": [asdict(row) for row in self.rows], "left_out": self.left_out}

    def save(self, folder: Path) -> None:
        """Write benchmark.json (times in seconds) and benchmark.md, each whole or not at all.

        Raises:
            UserError: they cannot be written.
        """
        text = json.dumps(make_json_safe(self.to_dict()), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        for name, content in zip(RESULTS, (text, self.to_markdown()), strict=True):
            write_atomically(folder / name, content)

    def _table(self) -> Table:
        rows = []
        for row in self.rows:
            seconds = (row.read, row.resize, row.network, row.postprocess, row.latency.median)
            milliseconds = [None if value is None else value * 1e3 for value in seconds]
            speed = (self.speed(row), row.images_per_second, self.throughput(row))
            rows.append((row.name, row.ap, *milliseconds, *speed, row.memory, row.size / 1e6))
        note = (
            "Parts and sum of one image, from its file to detections, are medians of one at a time; images/s are of "
            f"many files. How many times as fast: against {self.reference.name}."
        )
        if any(row.postprocess is None for row in self.rows):
            note += " Where no time of post-processing is given, that of the network contains it."
        headings, digits = zip(*COLUMNS, strict=True)
        return Table(headings, rows, note, digits)
