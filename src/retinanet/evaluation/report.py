"""The numbers of an evaluation as a table, as JSON, and the predictions as COCO results.

Images that hold more than a model reports of one are named: no evaluation may pass over them in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from retinanet.errors import UserError
from retinanet.evaluation.coco import COCO_LIMIT, CocoMetrics
from retinanet.files import make_json_safe, write_atomically
from retinanet.plotting.html import Table, format_number, render_text
from retinanet.spec import ModelSpec
from retinanet.types import Detections, Sample


@dataclass(frozen=True)
class CutImages:
    """The images in which ``max_detections`` of a model leaves out objects, or may do so."""

    cap: int  # the most detections of an image
    crowded: int  # images with more objects than that, ignore regions left out
    full: int  # images with that many detections, of which the last is good enough to be shown
    worst: int | str  # id of the image with the most objects among these
    objects: int  # how many it holds

    def __str__(self) -> str:
        kinds = [
            f"{self.crowded} images hold more objects than that" if self.crowded else "",
            f"{self.full} have that many detections that are good enough to be shown" if self.full else "",
        ]
        return (
            f"the model reports at most {self.cap} detections of an image: {', and '.join(filter(None, kinds))}; worst "
            f"is image {self.worst} with {self.objects} objects. Raise postprocess.max_detections: in the config.json "
            "of the model, or in training (--postprocess.max_detections)"
        )


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found; ``print`` shows it as a table.

    Attributes:
        metrics: AP, AR and counts.
        loss: loss per component (classification, box, total), or empty if it was not computed.
        images_per_second: images through the model and its post-processing, or None if it was not measured.
        about: what was evaluated on what, for the heading and the JSON, such as model, data and split.
        cut: the images of which the model reports too few detections; None if there is none, or nobody looked.
    """

    metrics: CocoMetrics
    loss: Mapping[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    about: Mapping[str, str] = field(default_factory=dict)
    cut: CutImages | None = None

    def __str__(self) -> str:
        return render_text(self.to_table())

    def to_table(self) -> RenderableType:
        """Overall, by size and per class, with counts, for ``rich.print``; "-" is what could not be measured."""
        metrics = self.metrics
        lines = [f"{key}: {value}" for key, value in self.about.items()]
        lines.append(
            f"{metrics.images} images, {metrics.boxes} boxes, {metrics.ignored} ignore regions, "
            f"{metrics.detections} detections"
        )
        lines += self.describe_limits()
        if self.images_per_second is not None:
            lines.append(f"{self.images_per_second:.1f} images/s")
        if self.loss:
            lines.append("loss: " + ", ".join(f"{name} {format_number(value, 4)}" for name, value in self.loss.items()))
        overall = {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}
        overall |= {f"AP@{COCO_LIMIT}": metrics.ap100} if metrics.limit > COCO_LIMIT else {}
        overall |= {f"AR@{limit}": value for limit, value in metrics.ar.items()}
        sizes = {"small": metrics.small, "medium": metrics.medium, "large": metrics.large}
        by_class = [(row.name, row.images, row.boxes, row.detections, row.ap, row.ap50) for row in metrics.classes]
        return Group(
            Text("\n".join(lines)),  # names and paths may hold brackets that rich would read as markup
            Table(tuple(overall), [tuple(overall.values())]),
            Table(
                ("Size", "Boxes", "AP", "AR"), [(name, size.boxes, size.ap, size.ar) for name, size in sizes.items()]
            ),
            Table(("Class", "Images", "Boxes", "Detections", "AP", "AP50"), by_class),
        )

    def describe_limits(self) -> list[str]:
        """What AP counts beyond COCO's, and what it could not count: nothing in most sets, so no line."""
        metrics, lines = self.metrics, []
        if not metrics.boxes:
            lines.append(f"no object in the {metrics.images} images: AP cannot be measured")
        if metrics.limit > COCO_LIMIT:
            lines.append(
                f"AP counts up to {metrics.limit} detections of an image and class; with {COCO_LIMIT}, as COCO counts, "
                f"it is {format_number(metrics.ap100)}"
            )
        if self.cut is not None:
            lines.append(f"warning: {self.cut}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold; NaN and infinity become None."""
        numbers = {**asdict(self.metrics), "loss": self.loss, "images_per_second": self.images_per_second}
        cut = None if self.cut is None else asdict(self.cut)
        return make_json_safe({"about": self.about, **numbers, "cut": cut})

    def to_json(self, path: str | Path) -> None:
        """Writes :meth:`to_dict` to ``path``, whole or not at all.

        Raises:
            UserError: the file cannot be written.
        """
        write_atomically(path, json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def find_cut_images(spec: ModelSpec, samples: Sequence[Sample], detections: Sequence[Detections]) -> CutImages | None:
    """What the cap of a model leaves out of N annotated images in which it made N detections; None if nothing.

    Of a model of windows it is not known here: the cap is that of a window.
    """
    if spec.tiling is not None:
        return None
    cap = spec.postprocess.max_detections
    objects = [int((~sample.target.ignore).sum()) for sample in samples]
    crowded = [count > cap for count in objects]
    full = [spec.is_at_limit(found) for found in detections]
    cut = [row for row in range(len(samples)) if crowded[row] or full[row]]
    if not cut:
        return None
    worst = max(cut, key=lambda row: objects[row])
    return CutImages(cap, sum(crowded), sum(full), samples[worst].image_id, objects[worst])


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
    ids = tuple(category_ids) if category_ids is not None else None

    def write(draft: Path) -> None:
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(_result_lines(samples, detections, ids))

    write_atomically(path, write)


def _result_lines(
    samples: Sequence[Sample], detections: Sequence[Detections], ids: tuple[int, ...] | None
) -> Iterator[str]:
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
