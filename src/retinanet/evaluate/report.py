"""The numbers of an evaluation as a table, as JSON, and the predictions as COCO results."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from retinanet.evaluate.coco import CocoMetrics
from retinanet.files import write_atomically
from retinanet.types import Detections, Sample, UserError


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found; ``print`` shows it as a table.

    Attributes:
        metrics: AP, AR and counts.
        loss: loss per component (classification, box, total), or empty if it was not computed.
        images_per_second: images through the model and its post-processing, or None if it was not measured.
        about: what was evaluated on what, for the heading and the JSON, such as model, data and split.
    """

    metrics: CocoMetrics
    loss: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=100, color_system=None).print(self.to_table())
        return text.getvalue()

    def to_table(self) -> RenderableType:
        """Overall, by size and per class, with counts, for ``rich.print``; "-" is what could not be measured."""
        metrics = self.metrics
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines.append(
            f"{metrics.images} images, {metrics.boxes} boxes, {metrics.ignored} ignore regions, "
            f"{metrics.detections} detections"
        )
        if self.images_per_second is not None:
            lines.append(f"{self.images_per_second:.1f} images/s")
        if self.loss:
            lines.append("loss: " + ", ".join(f"{name} {_number(value, 4)}" for name, value in self.loss.items()))
        # Text, because names and paths may hold brackets that rich would read as markup
        return Group(Text("\n".join(lines)), self._overall(), self._by_size(), self._by_class())

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; NaN and infinity become None."""
        return _plain(
            {
                "about": self.about,
                **asdict(self.metrics),
                "loss": self.loss,
                "images_per_second": self.images_per_second,
            }
        )

    def to_json(self, path: str | Path) -> None:
        """Writes :meth:`to_dict` to ``path``, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        _write(Path(path), [json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False), "\n"])

    def _overall(self) -> Table:
        recall = {f"AR@{limit}": value for limit, value in self.metrics.ar.items()}
        values = {"AP": self.metrics.ap, "AP50": self.metrics.ap50, "AP75": self.metrics.ap75, **recall}
        table = _table(*values)
        table.add_row(*(_number(value) for value in values.values()))
        return table

    def _by_size(self) -> Table:
        table = _table("Size", "Boxes", "AP", "AR", text_columns=1)
        for name in ("small", "medium", "large"):
            size = getattr(self.metrics, name)
            table.add_row(name, str(size.boxes), _number(size.ap), _number(size.ar))
        return table

    def _by_class(self) -> Table:
        table = _table("Class", "Images", "Boxes", "Detections", "AP", "AP50", text_columns=1)
        for row in self.metrics.classes:
            counts = (str(row.images), str(row.boxes), str(row.detections))
            table.add_row(Text(row.name), *counts, _number(row.ap), _number(row.ap50))
        return table


def save_coco_results(
    path: str | Path,
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    category_ids: Sequence[int] | None = None,
) -> None:
    """Writes predictions as COCO results: a JSON list with one detection a line, whole or not at all.

    Args:
        path: the file; its folder is made if it is missing.
        samples: the images; results carry their ids.
        detections: what was found in each, in pixels of the original image.
        category_ids: K ids of the annotation file; label + 1 by default.

    Raises:
        UserError: the sequences differ in length, a number is not finite, or the file cannot be written.
    """
    if len(samples) != len(detections):
        raise UserError(f"{len(samples)} samples but {len(detections)} detections: give one Detections per sample")
    _write(Path(path), _result_lines(samples, detections, tuple(category_ids) if category_ids is not None else None))


def _result_lines(
    samples: Sequence[Sample], detections: Sequence[Detections], ids: tuple[int, ...] | None
) -> Iterable[str]:
    """The text of the list piece by piece, so that a large set is never held twice."""
    separator = "[\n"
    for sample, found in zip(samples, detections, strict=True):
        for row in found.to_coco(sample.image_id, ids):
            try:
                yield separator + json.dumps(row, allow_nan=False)
            except ValueError:
                raise UserError(
                    f"image {sample.image_id!r}: the detection {row} holds a number that is not finite, which JSON "
                    "cannot hold; check the weights of the model for NaN"
                ) from None
            separator = ",\n"
    yield "[]\n" if separator == "[\n" else "\n]\n"


def _table(*headings: str, text_columns: int = 0) -> Table:
    """A table whose first columns are text (folded, never cut) and whose other columns are numbers."""
    table = Table(box=SIMPLE, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < text_columns else "right", overflow="fold")
    return table


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _plain(value: Any) -> Any:
    """Nested dictionaries, lists and numbers with string keys and None for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, pieces: Iterable[str]) -> None:
    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(pieces)

    write_atomically(path, write)
