"""What happened to the boxes of a whole data set: how many ended at each gate, by class and by size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from retinanet.analysis.trace.outcomes import BELOW, FOUND, GATES, SUPPRESSED, Box, ImageTrace
from retinanet.evaluation.coco import AREA_RANGES
from retinanet.evaluation.matching import KINDS
from retinanet.plotting.figures import INK, LEGEND, make_axes, say_empty
from retinanet.plotting.html import Section, Table


@dataclass
class Shares:
    """How many annotated boxes of a data set ended at each gate; ignore regions are left out.

    It counts traces, image by image, and holds no image and no trace.

    Attributes:
        class_names: K names.
        score: the score threshold of the traces.
        images: number of images.
        counts: boxes by (gate, label, size); a gate is a key of ``GATES`` of :mod:`.outcomes`, a size is
            small (area of the annotated box below 32 x 32 pixels of the original image), medium or large (96 x 96).
        detections: detections by what they are (see :class:`~retinanet.analysis.trace.outcomes.DetectionTrace`).
        crowded: boxes suppressed under a detection that is right for another object.
        below: for each box below the threshold its best score.
    """

    class_names: Sequence[str]
    score: float
    images: int = 0
    counts: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    detections: Counter[str] = field(default_factory=Counter)
    crowded: int = 0
    below: list[float] = field(default_factory=list)

    def update(self, image: ImageTrace) -> None:
        """Add an image; its boxes are in pixels of the original image."""
        self.images += 1
        self.detections.update(detection.kind for detection in image.detections)
        for box in image.boxes:
            self.counts[box.gate, box.label, name_size(box.box)] += 1
            self.crowded += box.gate == SUPPRESSED and box.by is not None and box.by.matched is not None
            if box.gate == BELOW and box.best is not None:
                self.below.append(box.best.score)

    @property
    def boxes(self) -> int:
        """All annotated boxes."""
        return self.counts.total()

    def gates(self, *, label: int | None = None, size: str | None = None) -> dict[str, int]:
        """Boxes of each gate, in order, of one class or size if one is given."""
        gates = dict.fromkeys(GATES, 0)
        for (gate, its_label, its_size), count in self.counts.items():
            gates[gate] += count if label in (None, its_label) and size in (None, its_size) else 0
        return gates

    @property
    def lost(self) -> list[tuple[int, str]]:
        """(number, gate) of the gates at which boxes were lost, the worst first."""
        return sorted(((n, gate) for gate, n in self.gates().items() if n and gate != FOUND), reverse=True)

    @property
    def classes(self) -> dict[str, dict[str, int]]:
        """Boxes of each class by gate."""
        return {name: self.gates(label=label) for label, name in enumerate(self.class_names)}

    @property
    def sizes(self) -> dict[str, dict[str, int]]:
        """Boxes of each size by gate."""
        return {size: self.gates(size=size) for size in AREA_RANGES}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        gates = self.gates()
        return {
            "images": self.images,
            "boxes": self.boxes,
            "score": self.score,
            "gates": {gate: {"boxes": n, "share": n / self.boxes if self.boxes else None} for gate, n in gates.items()},
            "classes": self.classes,
            "sizes": self.sizes,
            "suppressed_under_another_object": self.crowded,
            "median_score_below_threshold": median(self.below) if self.below else None,
            "detections": {kind: self.detections[kind] for kind in KINDS},
        }

    def summary(self) -> str:
        """A line for the data set and one for each gate at which boxes were lost, the worst first."""
        lines = [f"{self.gates()[FOUND]} of {self.boxes} boxes found in {self.images} images at score {self.score:g}"]
        for count, gate in self.lost:
            more = f", half of them score {median(self.below):.3f} or less" if gate == BELOW else ""
            more += f", {self.crowded} of them under another object's detection" if gate == SUPPRESSED else ""
            lines.append(f"  {count:>6} {gate} ({count / self.boxes:.1%}){more}: {GATES[gate].remedy}")
        return "\n".join(lines)


def name_size(box: Box) -> str:
    """Small, medium or large, as COCO cuts areas; each cut belongs to the larger side."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next((name for name, (_, high) in AREA_RANGES.items() if area < high), "large")


def section(shares: Shares, pictures: Sequence[tuple[str, Image.Image]] = ()) -> Section:
    """What happened to the boxes, for a report.

    Args:
        shares: of the data set.
        pictures: (caption, picture) of images worth a look.
    """
    total = max(shares.boxes, 1)
    counts = {gate: count for gate, count in shares.gates().items() if count or gate == FOUND}
    rows = [(gate, count, count / total, GATES[gate].remedy) for gate, count in counts.items()]
    gates = list(counts)
    kinds = [(kind, shares.detections[kind]) for kind in KINDS]
    first = shares.summary().splitlines()[0]
    tables = [
        Table(("gate", "boxes", "share", "what to do"), rows, point="Boxes by the step that lost them, and what to do")
    ]
    cuts = "small: below 32 x 32 pixels of the original image; large: from 96 x 96 on."
    for what, groups, note in (("class", shares.classes, ""), ("size", shares.sizes, cuts)):
        by_group = [(name, sum(row.values()), *(row[gate] for gate in gates)) for name, row in groups.items()]
        tables.append(Table((what, "boxes", *gates), by_group, note, point=f"The same by {what}"))
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds if count)
    note = "What is neither a match nor ignored is a false positive."
    tables.append(Table(("detections", "number"), kinds, note, point=f"What the detections are: {listed or 'none'}"))
    figures = []
    if len(gates) > 1:
        groups = shares.classes | {f"{size} boxes": row for size, row in shares.sizes.items()}
        bars = {f"{name} ({sum(row.values())})": row for name, row in groups.items() if sum(row.values())}
        caption = "Shares of the missed boxes by gate, for each class and size"
        figures.append((caption, draw_gate_bars(bars)))
    return Section(
        title="Why boxes were missed",
        text=(
            "Every annotated box was followed through the post-processing. Its gate is the rule at which the last box "
            f"in place (IoU of at least 0.5) for it ended; a detection scores above {shares.score:g}. More boxes are "
            "missed at a higher score, such as the thresholds of the classes; and the errors named missed above are "
            "fewer, because they leave out objects that a fixed localisation or class would find.\n\n"
            f"    {shares.summary()}"
        ),
        tables=tables,
        figures=figures,
        pictures=pictures,
        point=f"{first}.",
    )


def draw_gate_bars(groups: Mapping[str, Mapping[str, int]]) -> Figure:
    """Shares of the missed boxes of each group, a bar each, stacked by gate; ``groups`` are boxes by name and gate."""
    title = "share of the annotated boxes of the group that were missed (%)"
    figure, axes = make_axes("", title, "", size=(9.0, 1.6 + 0.42 * max(len(groups), 1)), grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False)
    left = np.zeros(len(groups))
    for name, gate in GATES.items():
        part = np.array([100 * row.get(name, 0) / max(sum(row.values()), 1) for row in groups.values()])
        if name != FOUND and part.any():
            fill = np.array(gate.colour) / 255
            look: dict[str, Any] = {"color": fill, "hatch": gate.hatch, "edgecolor": INK, "linewidth": 0.6}
            axes.barh(list(groups), part, left=left, height=0.62, label=name, **look)
            left = left + part
    for row, total in enumerate(left):
        axes.text(total, row, f"  {total:.1f}", va="center", color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.12 * left.max(initial=0.0)))
    if axes.containers:
        figure.legend(loc="outside upper left", ncols=4, **LEGEND)
    else:
        say_empty(axes, "nothing was missed")
    return figure
