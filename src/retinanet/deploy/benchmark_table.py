"""The table of a benchmark: on the console, as Markdown and as JSON."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from retinanet.deploy.stopwatch import Spread
from retinanet.errors import UserError

RESULTS = ("benchmark.json", "benchmark.md")
HEADINGS = (
    *("", "AP", "read ms", "resize ms", "network ms", "post ms", "image ms", "times", "images/s", "times"),
    *("memory MB", "files MB"),
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
        text = io.StringIO()
        Console(file=text, width=110, color_system=None).print(self.to_table())
        return text.getvalue().rstrip()

    def to_table(self) -> RenderableType:
        """For ``rich.print``."""
        table = Table(box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0))
        for index, heading in enumerate(HEADINGS):
            least = max(map(len, heading.split()), default=0)
            table.add_column(heading, justify="right" if index else "left", no_wrap=not index, min_width=least)
        for row in self.rows:
            table.add_row(*self._cells(row))
        about = "\n".join(f"{key}: {value}" for key, value in self.about.items())
        parts: list[RenderableType] = [Text(about), table, Text(self._legend())]
        if self.left_out:
            parts.append(Text("\nleft out\n" + "\n".join(f"  {name}: {why}" for name, why in self.left_out.items())))
        return Group(*parts)

    def to_markdown(self) -> str:
        """A section for a page of results: the command, the machine, the table and what was left out."""
        about = {key: value for key, value in self.about.items() if key != "command"}
        lines = [f"`{self.about['command']}`", "", "; ".join(f"{key}: {value}" for key, value in about.items()) + "."]
        lines += ["", "| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
        lines += ["| " + " | ".join(self._cells(row)) + " |" for row in self.rows]
        lines += ["", self._legend()]
        if self.left_out:
            lines += ["", "Left out:", "", *(f"* {name}: {why}" for name, why in self.left_out.items())]
        return "\n".join(lines) + "\n"

    def save(self, folder: Path) -> None:
        """Write benchmark.json (times in seconds) and benchmark.md, both whole or neither of them.

        Raises:
            UserError: they cannot be written.
        """
        values = {"about": self.about, "rows": [_plain(row) for row in self.rows], "left_out": self.left_out}
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        drafts = {folder / f".{name}.{os.getpid()}.part": folder / name for name in RESULTS}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for draft, content in zip(drafts, (text, self.to_markdown()), strict=True):
                draft.write_text(content, encoding="utf-8")
            for draft, target in drafts.items():
                os.replace(draft, target)
        except OSError as error:
            raise UserError(f"--output {folder} cannot be written ({error}). Choose another folder") from None
        finally:
            for draft in drafts:
                with suppress(OSError):
                    draft.unlink()

    def _cells(self, row: Row) -> list[str]:
        milliseconds = (row.read, row.resize, row.network, row.postprocess, row.latency.median)
        read, resize, network, post, latency = ("" if value is None else f"{value * 1e3:.1f}" for value in milliseconds)
        return [
            *(row.name, "-" if math.isnan(row.ap) else f"{row.ap:.4f}", read, resize, network, post, latency),
            *(f"{self.speed(row):.2f}", f"{row.images_per_second:.2f}", f"{self.throughput(row):.2f}"),
            *("-" if row.memory is None else f"{row.memory:.0f}", f"{row.size / 1e6:.1f}"),
        ]

    def _legend(self) -> str:
        text = (
            "Parts and sum of one image, from its file to detections, are medians of one at a time; images/s are of "
            f"many files. How many times as fast: against {self.reference.name}."
        )
        if any(row.postprocess is None for row in self.rows):
            text += " Where no time of post-processing is given, that of the network contains it."
        return text


def _plain(row: Row) -> dict[str, object]:
    """What JSON can hold: None where a number is not finite."""
    values = asdict(row)
    return {key: None if isinstance(one, float) and not math.isfinite(one) else one for key, one in values.items()}
