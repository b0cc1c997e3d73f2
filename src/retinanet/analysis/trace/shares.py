"""What happened to the boxes of a whole data set: how many ended at each gate, by class and by size."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import track

from retinanet.analysis.trace.figures import gate_bars
from retinanet.analysis.trace.outcomes import BELOW, FOUND, GATES, REMEDIES, SUPPRESSED, Box, ImageTrace
from retinanet.analysis.trace.trace import trace
from retinanet.anchors.matching import Matcher
from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import evaluation_batches
from retinanet.detector import Detector
from retinanet.evaluation.coco import AREA_RANGES
from retinanet.plotting.html import Section, Table

KINDS = ("match", "ignored", "localisation", "classification", "duplicate", "both", "background")


@dataclass(frozen=True)
class Shares:
    """How many annotated boxes of a data set ended at each gate; ignore regions are left out.

    Attributes:
        class_names: K names.
        images: number of images.
        score: the score threshold.
        counts: boxes by (gate, label, size); a gate is one of ``GATES`` of :mod:`.outcomes`, a size is
            small (area of the annotated box below 32 x 32 pixels of the original image), medium or large (96 x 96).
        detections: detections by what they are (see :class:`~retinanet.analysis.trace.outcomes.DetectionTrace`).
        crowded: boxes suppressed under a detection that is right for another object.
        below: for each box below the threshold its best score.
    """

    class_names: tuple[str, ...]
    images: int
    score: float
    counts: Mapping[tuple[str, int, str], int]
    detections: Mapping[str, int]
    crowded: int
    below: tuple[float, ...]

    @property
    def boxes(self) -> int:
        """All annotated boxes."""
        return sum(self.counts.values())

    def at(self, gate: str, *, label: int | None = None, size: str | None = None) -> int:
        """Boxes that ended at a gate, of one class or size if one is given."""
        wanted = {(gate, label, size), (gate, None, size), (gate, label, None), (gate, None, None)}
        return sum(
            count
            for (where, kind, area), count in self.counts.items()
            if (where, None if label is None else kind, None if size is None else area) in wanted
        )

    def gates(self, *, label: int | None = None, size: str | None = None) -> dict[str, int]:
        """Boxes of each gate, in order, of one class or size if one is given."""
        return {gate: self.at(gate, label=label, size=size) for gate in GATES}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        gates = self.gates()
        return {
            "images": self.images,
            "boxes": self.boxes,
            "score": self.score,
            "gates": {gate: {"boxes": n, "share": n / self.boxes if self.boxes else None} for gate, n in gates.items()},
            "classes": {name: self.gates(label=label) for label, name in enumerate(self.class_names)},
            "sizes": {size: self.gates(size=size) for size in AREA_RANGES},
            "suppressed_under_another_object": self.crowded,
            "median_score_below_threshold": median(self.below) if self.below else None,
            "detections": {kind: self.detections.get(kind, 0) for kind in KINDS},
        }

    def summary(self) -> str:
        """A line for the data set and one for each gate at which boxes were lost, the worst first."""
        lines = [f"{self.at(FOUND)} of {self.boxes} boxes found in {self.images} images at score {self.score:g}"]
        lost = sorted(((n, gate) for gate, n in self.gates().items() if n and gate != FOUND), reverse=True)
        for count, gate in lost:
            lines.append(f"  {count:>6} {gate} ({count / self.boxes:.1%}){self._more(gate)}: {REMEDIES[gate]}")
        return "\n".join(lines)

    def _more(self, gate: str) -> str:
        if gate == BELOW:
            return f", half of them score {median(self.below):.3f} or less"
        return f", {self.crowded} of them under another object's detection" if gate == SUPPRESSED else ""


class GateShares:
    """Counts traces, image by image; holds no image and no trace.

    Args:
        class_names: K names.
        score: the score threshold of the traces.
    """

    def __init__(self, class_names: Sequence[str], score: float) -> None:
        self._empty = Shares(tuple(class_names), 0, score, {}, {}, 0, ())
        self._images = self._crowded = 0
        self._counts: Counter[tuple[str, int, str]] = Counter()
        self._kinds: Counter[str] = Counter()
        self._below: list[float] = []

    def update(self, one: ImageTrace) -> None:
        """Add an image; its boxes are in pixels of the original image."""
        self._images += 1
        self._kinds.update(detection.kind for detection in one.detections)
        for box in one.boxes:
            self._counts[box.gate, box.label, size_of(box.box)] += 1
            if box.gate == SUPPRESSED and box.by is not None and box.by.matched is not None:
                self._crowded += 1
            if box.gate == BELOW and box.best is not None:
                self._below.append(box.best.score)

    def result(self) -> Shares:
        """The shares so far."""
        return replace(
            self._empty,
            images=self._images,
            counts=dict(self._counts),
            detections=dict(self._kinds),
            crowded=self._crowded,
            below=tuple(self._below),
        )


def size_of(box: Box) -> str:
    """Small, medium or large, as COCO cuts areas; each cut belongs to the larger side."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next((name for name, (_, high) in AREA_RANGES.items() if area < high), "large")


def gate_shares(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    score: float | None = None,
    matcher: Matcher | None = None,
    workers: int = 0,
) -> Shares:
    """Trace every image of a data set.

    Args:
        detector: its network lies on ``device`` and is put into evaluation mode.
        dataset: annotated images with the detector's classes.
        device: of the batches.
        score: the score threshold; the model's own by default.
        matcher: of the training; the paper's rule by default.
        workers: processes that read images.
    """
    rule = detector.spec.postprocess if score is None else replace(detector.spec.postprocess, score=score)
    detector.net.eval()
    shares = GateShares(dataset.class_names, rule.score)
    batches = evaluation_batches(
        dataset, preprocess=detector.spec.preprocess, batch_size=1, indices=range(len(dataset)), workers=workers
    )
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with closing(batches):
        for _, batch in track(batches, "why", total=len(dataset), console=console, transient=True, disable=quiet):
            batch = batch.to(device)
            with torch.inference_mode():
                raw = detector.raw(batch)
                height, width = batch.sizes[0].tolist()
                sample = batch.samples[0]
                shares.update(trace(raw, 0, batch.targets[0], (height, width), rule, matcher, original=sample.size))
    return shares.result()


def section(shares: Shares, pictures: Sequence[tuple[str, Image.Image]] = ()) -> Section:
    """What happened to the boxes, for a report.

    Args:
        shares: of the data set.
        pictures: (caption, picture) of images worth a look.
    """
    gates = [gate for gate, count in shares.gates().items() if count or gate == FOUND]
    total = max(shares.boxes, 1)
    rows = [(gate, shares.at(gate), shares.at(gate) / total, REMEDIES[gate]) for gate in gates]
    classes = {name: shares.gates(label=label) for label, name in enumerate(shares.class_names)}
    sizes = {size: shares.gates(size=size) for size in AREA_RANGES}
    kinds = [(kind, shares.detections.get(kind, 0)) for kind in KINDS]
    groups = classes | {f"{size} boxes": row for size, row in sizes.items()}
    bars = {f"{name} ({sum(row.values())})": row for name, row in groups.items() if sum(row.values())}
    return Section(
        title="Why boxes were missed",
        text=(
            "Every annotated box was followed through the post-processing. Its gate is the rule at which the last box "
            f"in place (IoU of at least 0.5) for it ended; a detection scores above {shares.score:g}. More boxes are "
            "missed at a higher score, such as the thresholds of the classes; and the errors named missed above are "
            "fewer, because they leave out objects that a fixed localisation or class would find.\n\n"
            f"    {shares.summary()}"
        ),
        tables=[
            Table(("gate", "boxes", "share", "what to do"), rows),
            _by("class", classes, gates),
            _by("size", sizes, gates, "small: below 32 x 32 pixels of the original image; large: from 96 x 96 on."),
            Table(("detections", "number"), kinds, "What is neither a match nor ignored is a false positive."),
        ],
        figures=[("Shares of the missed boxes by gate, for each class and size", gate_bars(bars, GATES[1:]))]
        if len(gates) > 1
        else [],
        pictures=pictures,
    )


def _by(what: str, groups: Mapping[str, Mapping[str, int]], gates: Sequence[str], note: str = "") -> Table:
    rows = [(name, sum(row.values()), *(row[gate] for gate in gates)) for name, row in groups.items()]
    return Table((what, "boxes", *gates), rows, note)
