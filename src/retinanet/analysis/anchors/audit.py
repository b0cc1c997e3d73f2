"""Do the anchors fit the boxes? An audit at the true size of training, before the first epoch and without an image.

A box that no anchor overlaps by the foreground IoU (0.5) is learned through forced matches only, one or a few anchors
in place of a dozen; where the best IoU is below the background (0.4), even that anchor looks like a negative. The audit
counts those boxes, by size, shape, class and level, and the share of positives among all anchors, which is the
imbalance that the focal loss has to carry (Lin et al., section 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.analysis.anchors.coverage import cover, objects_of
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Matcher
from retinanet.images.preprocess import Preprocess
from retinanet.types import Sample

COCO_SIDES = (32, 96)  # pixels: sides of the squares that divide small, medium and large
RATIOS = (1 / 8, 1 / 4, 1 / 2, 1 / math.sqrt(2), math.sqrt(2), 2, 4, 8)  # height / width, edges of the bins
SHAPES = (
    "wider than 8:1",
    "wide, 4:1 to 8:1",
    "wide, 2:1 to 4:1",
    "wide, 1.4:1 to 2:1",
    "about square",
    "tall, 1:1.4 to 1:2",
    "tall, 1:2 to 1:4",
    "tall, 1:4 to 1:8",
    "taller than 1:8",
)
BINS = 20  # of the histogram of the best IoU
MATCHER = Matcher()  # the paper's thresholds


@dataclass(frozen=True)
class Group:
    """Boxes that have something in common.

    Attributes:
        name: what they have in common.
        boxes: how many.
        below_foreground: share whose best IoU is below the matcher's foreground (0.5).
        below_background: share whose best IoU is below the matcher's background (0.4).
        best_iou: mean of the best IoUs.
        positives: mean number of anchors that answer for a box.
        forced: share that has positives by forced matches alone.
        none: share that no anchor answers for.
    """

    name: str
    boxes: int
    below_foreground: float
    below_background: float
    best_iou: float
    positives: float
    forced: float
    none: float


@dataclass(frozen=True)
class AnchorAudit:
    """How the anchors fit the M boxes of a data set; ignore regions are left out.

    Attributes:
        best_iou: (M,) highest IoU of each box with any anchor of its image; 0 for a box without area.
        level: (M,) level of that anchor, counted from the finest as 0; -1 where the IoU is 0.
        positives: (M,) anchors that the matcher gives the box, forced ones included.
        sides: (M, 2) width and height in pixels of the resized image.
        label: (M,) class.
        images: how many, with and without boxes.
        anchors: over all images, each padded by itself to the multiple that training pads to.
        class_names: K names.
        lattice: the anchors.
        preprocess: the size of training.
        matcher: which anchors answer for which box.
    """

    best_iou: NDArray[np.float32]
    level: NDArray[np.int64]
    positives: NDArray[np.int64]
    sides: NDArray[np.float32]
    label: NDArray[np.int64]
    images: int
    anchors: int
    class_names: tuple[str, ...]
    lattice: AnchorLattice
    preprocess: Preprocess
    matcher: Matcher

    @property
    def boxes(self) -> int:
        """M."""
        return len(self.best_iou)

    @property
    def templates(self) -> NDArray[np.float32]:
        """(L * A, 2) width and height of the anchors, level by level."""
        corners = self.lattice.templates().flatten(0, 1).numpy()
        sides: NDArray[np.float32] = corners[:, 2:] - corners[:, :2]
        return sides

    @property
    def forced(self) -> NDArray[np.bool_]:
        """(M,) whether the box has positives, but none that reaches the foreground IoU: forced matches alone."""
        return (self.positives > 0) & (self.best_iou < self.matcher.foreground)

    @property
    def positives_share(self) -> float:
        """Positives among all anchors; NaN without images."""
        return int(self.positives.sum()) / self.anchors if self.anchors else math.nan

    def below(self, iou: float) -> float:
        """Share of the boxes whose best IoU is below this; NaN without boxes."""
        return float((self.best_iou < np.float32(iou)).mean()) if self.boxes else math.nan

    @cached_property
    def tables(self) -> dict[str, tuple[Group, ...]]:
        """The boxes in groups: by ``size`` (COCO's), ``octave`` of size, ``shape``, ``class`` and ``level``.

        Sizes are those after the resize: the square root of the area. The level is that of the best anchor. Each table
        holds every box once; groups without boxes are left out, but for classes.
        """
        side = np.sqrt(self.sides.astype(np.float64).prod(axis=1))
        octave = np.floor(np.log2(np.maximum(side, 0.5))).astype(np.int64)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(self.sides[:, 1].astype(np.float64) / self.sides[:, 0], nan=1.0)
        size_names = [f"small, below {COCO_SIDES[0]}", "medium", f"large, {COCO_SIDES[1]} and above"]
        return {
            "size": self._groups(np.digitize(side, COCO_SIDES), dict(enumerate(size_names))),
            "octave": self._groups(octave, {k: _octave(k) for k in sorted(set(octave.tolist()))}),
            "shape": self._groups(np.digitize(ratio, RATIOS), dict(enumerate(SHAPES))),
            "class": self._groups(self.label, dict(enumerate(self.class_names)), keep_empty=True),
            "level": self._groups(self.level, self._levels()),
        }

    def histogram(self) -> NDArray[np.int64]:
        """(20,) boxes by best IoU, in bins of 0.05."""
        return np.histogram(self.best_iou, BINS, (0, 1))[0].astype(np.int64)

    def summary(self) -> str:
        """A few lines: what the anchors miss, and the imbalance."""
        low, high = self.matcher.background, self.matcher.foreground
        if not self.boxes:
            return "anchors: no boxes to audit"
        lines = [
            f"anchors: {self.below(high):.1%} of {self.boxes:,} boxes have none at IoU {high:g}, {self.below(low):.1%} "
            f"none at {low:g}; {self.positives.mean():.1f} positives per box",
            f"  {self.positives_share:.3%} of the anchors are positive, {imbalance(self)}",
        ]
        unmatched = int((self.positives == 0).sum())
        if unmatched:
            lines.append(f"  {unmatched:,} boxes have no anchor that answers for them: nothing is learned from them")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON, without those of single boxes; a share of nothing is None."""
        low, high = self.matcher.background, self.matcher.foreground
        return {
            "boxes": self.boxes,
            "images": self.images,
            "anchors": self.anchors,
            "positives": int(self.positives.sum()),
            "positives_share": _known(self.positives_share),
            "foreground": high,
            "background": low,
            "below_foreground": _known(self.below(high)),
            "below_background": _known(self.below(low)),
            "forced": int(self.forced.sum()),
            "none": int((self.positives == 0).sum()),
            "mean_best_iou": float(self.best_iou.mean()) if self.boxes else None,
            "histogram": self.histogram().tolist(),
            "image": {key: getattr(self.preprocess, key) for key in ("short", "long", "multiple")},
            "lattice": {key: list(getattr(self.lattice, key)) for key in ("strides", "sizes", "ratios", "scales")},
            "tables": {
                name: [{key: _known(value) for key, value in asdict(group).items()} for group in groups]
                for name, groups in self.tables.items()
            },
        }

    def _levels(self) -> dict[int, str]:
        named = {i: f"stride {s}, size {z:g}" for i, (s, z) in enumerate(_pairs(self.lattice))}
        return {**named, -1: "no anchor overlaps"}

    def _groups(
        self, member: NDArray[np.int64], names: dict[int, str], *, keep_empty: bool = False
    ) -> tuple[Group, ...]:
        sums = {}
        index = np.searchsorted(keys := np.array(sorted(names)), member)
        columns = {
            "boxes": np.ones(self.boxes),
            "below_foreground": self.best_iou < np.float32(self.matcher.foreground),
            "below_background": self.best_iou < np.float32(self.matcher.background),
            "best_iou": self.best_iou,
            "positives": self.positives,
            "forced": self.forced,
            "none": self.positives == 0,
        }
        for name, values in columns.items():
            sums[name] = np.bincount(index, values.astype(np.float64), minlength=len(keys))
        groups = []
        for row, key in enumerate(keys.tolist()):
            count = int(sums["boxes"][row])
            if count or keep_empty:
                means = {
                    name: float(total[row]) / count if count else math.nan
                    for name, total in sums.items()
                    if name != "boxes"
                }
                groups.append(Group(name=names[key], boxes=count, **means))
        return tuple(groups)


def audit(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    *,
    lattice: AnchorLattice,
    preprocess: Preprocess,
    matcher: Matcher = MATCHER,
) -> AnchorAudit:
    """Count what the anchors do for the boxes of a data set, at the size that training sees.

    Boxes are resized as the loader does and every image is padded by itself; a batch is padded to its largest image,
    which adds anchors that are nearly all negative. Augmentation that changes sizes is not taken into account. Exact:
    IoUs and positives are those of all boxes with all anchors.

    Args:
        samples: annotated images; their pixels are not read.
        class_names: K names.
        lattice: the anchors.
        preprocess: the size of training.
        matcher: which anchors answer for which box.
    """
    objects = objects_of(samples, preprocess)
    found = cover(objects, lattice, matcher)
    per_size = {size: lattice.count(lattice.grids(*size)) for size in set(objects.inputs)}
    return AnchorAudit(
        best_iou=found.iou.numpy(),
        level=found.level.numpy(),
        positives=found.positives.numpy(),
        sides=(objects.boxes[:, 2:] - objects.boxes[:, :2]).numpy(),
        label=objects.labels.numpy(),
        images=len(samples),
        anchors=sum(per_size[size] for size in objects.inputs),
        class_names=tuple(class_names),
        lattice=lattice,
        preprocess=preprocess,
        matcher=matcher,
    )


def imbalance(audited: AnchorAudit) -> str:
    """How many anchors there are for one positive, in words."""
    positives = int(audited.positives.sum())
    return f"one in {round(audited.anchors / positives):,}" if positives else "none at all"


def _pairs(lattice: AnchorLattice) -> list[tuple[int, float]]:
    return list(zip(lattice.strides, lattice.sizes, strict=True))


def _octave(power: int) -> str:
    return "below 1" if power < 0 else f"{2**power} to {2 ** (power + 1)}"


def _known(value: Any) -> Any:
    """None for NaN, which JSON does not know."""
    return None if isinstance(value, float) and math.isnan(value) else value
