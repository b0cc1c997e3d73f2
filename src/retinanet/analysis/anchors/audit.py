"""Do the anchors fit the boxes? An audit at the true size of training, before the first epoch and without an image.

A box that no anchor overlaps by the foreground IoU (0.5) is learned through forced matches only, one or a few anchors
in place of a dozen; where the best IoU is below the background (0.4), even that anchor looks like a negative. The audit
counts those boxes, by size, shape, class and level, and the share of positives among all anchors, which is the
imbalance that the focal loss has to carry (Lin et al., section 3).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retinanet.anchors.atss import ATSS
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import BACKGROUND, FOREGROUND, Matcher
from retinanet.files import make_json_safe
from retinanet.images.preprocess import Preprocess
from retinanet.types import Sample

COCO_SIDES = (32, 96)  # pixels: sides of the squares that divide small, medium and large
SIZES = (f"small, below {COCO_SIDES[0]}", "medium", f"large, {COCO_SIDES[1]} and above")
RATIOS = (1 / 8, 1 / 4, 1 / 2, 1 / math.sqrt(2), math.sqrt(2), 2, 4, 8)  # height / width, edges of the bins
WIDE = ("wider than 8:1", "wide, 4:1 to 8:1", "wide, 2:1 to 4:1", "wide, 1.4:1 to 2:1")
TALL = ("tall, 1:1.4 to 1:2", "tall, 1:2 to 1:4", "tall, 1:4 to 1:8", "taller than 1:8")
PARTS = ("sizes", "ratios", "scales")  # of a lattice: what a proposal changes
IMAGE = ("short", "long", "multiple")  # of a resize: what a proposal and its report say
MATCHER = Matcher()  # the paper's thresholds
MATCHED = 2**12  # boxes that are matched together, and those of the last image


class Group(NamedTuple):
    """Boxes that have something in common."""

    name: str  # what they have in common
    boxes: int  # how many
    below_foreground: float  # share whose best IoU is below the matcher's foreground (0.5)
    below_background: float  # share whose best IoU is below the matcher's background (0.4)
    best_iou: float  # mean of the best IoUs
    positives: float  # mean number of anchors that answer for a box
    forced: float  # share that has positives by forced matches alone
    none: float  # share that no anchor answers for


@dataclass(frozen=True)
class AnchorAudit:
    """How the anchors fit the M boxes of a data set; ignore regions are left out."""

    boxes: NDArray[np.float32]  # (M, 4) xyxy in pixels of the resized image
    labels: NDArray[np.int64]  # (M,) class
    best_iou: NDArray[np.float32]  # (M,) highest IoU of each box with any anchor of its image; 0 for a box without area
    level: NDArray[np.int64]  # (M,) level of that anchor, counted from the finest as 0; -1 where the IoU is 0
    positives: NDArray[np.int64]  # (M,) anchors that the matcher gives the box, forced ones included
    forced: NDArray[np.bool_]  # (M,) whether the box has positives, but forced ones alone
    # (height, width) of each image, with and without boxes, padded by itself to the multiple that training pads to. A
    # batch is padded to its largest image, which adds anchors that are nearly all negative.
    inputs: tuple[tuple[int, int], ...]
    class_names: tuple[str, ...]  # K names
    lattice: AnchorLattice  # the anchors
    preprocess: Preprocess  # the size of training
    matcher: Matcher | ATSS  # which anchors answer for which box

    def __len__(self) -> int:
        """M."""
        return len(self.boxes)

    @property
    def sides(self) -> NDArray[np.float32]:
        """(M, 2) width and height in pixels of the resized image."""
        return np.subtract(self.boxes[:, 2:], self.boxes[:, :2])

    @cached_property
    def anchors(self) -> int:
        """How many lie over all images."""
        return sum(n * self.lattice.count(self.lattice.grids(*size)) for size, n in Counter(self.inputs).items())

    @property
    def foreground(self) -> float:
        """The IoU from which on an anchor fits a box: the matcher's; the paper's where that has none for all boxes."""
        return self.matcher.foreground if isinstance(self.matcher, Matcher) else FOREGROUND

    @property
    def background(self) -> float:
        """The IoU below which an anchor does not fit, likewise."""
        return self.matcher.background if isinstance(self.matcher, Matcher) else BACKGROUND

    @property
    def octave(self) -> NDArray[np.int64]:
        """(M,) the octave of the size, the square root of the area: k for 2^k to 2^(k + 1) pixels, -1 below 1."""
        size = np.sqrt(self.sides.astype(np.float64).prod(axis=1))
        return np.floor(np.log2(np.maximum(size, 0.5))).astype(np.int64)

    @property
    def positives_share(self) -> float:
        """Positives among all anchors; NaN without images."""
        return int(self.positives.sum()) / self.anchors if self.anchors else math.nan

    def below(self, iou: float) -> float:
        """Share of the boxes whose best IoU is below this; NaN without boxes."""
        return float((self.best_iou < np.float32(iou)).mean()) if self.best_iou.size else math.nan

    @property
    def covered(self) -> float:
        """Share of the boxes with an anchor at the foreground IoU."""
        return 1 - self.below(self.foreground)

    @cached_property
    def tables(self) -> dict[str, tuple[Group, ...]]:
        """The boxes in groups: by ``size`` (COCO's), ``octave`` of size, ``shape``, ``class`` and ``level``.

        Sizes are those after the resize: the square root of the area. The level is that of the best anchor. Each table
        holds every box once; groups without boxes are left out, but for classes.
        """
        sides = self.sides.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.nan_to_num(sides[:, 1] / sides[:, 0], nan=1.0)
        octaves, octave = np.unique(self.octave, return_inverse=True)
        levels = [f"stride {s}, size {z:g}" for s, z in zip(self.lattice.strides, self.lattice.sizes, strict=True)]
        return {
            "size": self._group(np.digitize(np.sqrt(sides.prod(axis=1)), COCO_SIDES), SIZES),
            "octave": self._group(octave, [name_octave(k) for k in octaves.tolist()]),
            "shape": self._group(np.digitize(ratio, RATIOS), (*WIDE, "about square", *TALL)),
            "class": self._group(self.labels, self.class_names, keep_empty=True),
            "level": self._group(self.level + 1, ["no anchor overlaps", *levels]),
        }

    def summary(self) -> str:
        """A few lines: what the anchors miss, and the imbalance."""
        low, high = self.background, self.foreground
        if not len(self):
            return "anchors: no boxes to audit"
        positives, unmatched = int(self.positives.sum()), int((self.positives == 0).sum())
        imbalance = f"one in {round(self.anchors / positives):,}" if positives else "none at all"
        lines = [
            f"anchors: {self.below(high):.1%} of {len(self):,} boxes have none at IoU {high:g}, {self.below(low):.1%} "
            f"none at {low:g}; {self.positives.mean():.1f} positives per box",
            f"  {self.positives_share:.3%} of the anchors are positive, {imbalance}",
        ]
        if unmatched:
            lines.append(f"  {unmatched:,} boxes have no anchor that answers for them: nothing is learned from them")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The numbers as plain JSON, without those of single boxes; a share of nothing is None."""
        low, high = self.background, self.foreground
        values = {
            "boxes": len(self),
            "images": len(self.inputs),
            "anchors": self.anchors,
            "positives": self.positives.sum(),
            "positives_share": self.positives_share,
            "foreground": high,
            "background": low,
            "below_foreground": self.below(high),
            "below_background": self.below(low),
            "forced": self.forced.sum(),
            "none": (self.positives == 0).sum(),
            "mean_best_iou": self.best_iou.mean() if len(self) else None,
            "histogram": np.histogram(self.best_iou, 20, (0, 1))[0],  # in bins of 0.05
            "image": {key: getattr(self.preprocess, key) for key in IMAGE},
            "lattice": {key: getattr(self.lattice, key) for key in ("strides", *PARTS)},
            "tables": {name: [group._asdict() for group in groups] for name, groups in self.tables.items()},
        }
        return make_json_safe(values)

    def _group(self, number: NDArray[Any], names: Sequence[str], *, keep_empty: bool = False) -> tuple[Group, ...]:
        """The groups of these names; ``number`` (M,) is that of the group of each box."""
        count = np.bincount(number, minlength=len(names))
        columns = (
            self.best_iou < np.float32(self.foreground),
            self.best_iou < np.float32(self.background),
            self.best_iou,
            self.positives,
            self.forced,
            self.positives == 0,
        )
        with np.errstate(invalid="ignore"):
            means = [(np.bincount(number, values, len(names)) / count).tolist() for values in columns]
        rows = zip(names, count.tolist(), *means, strict=True)
        return tuple(Group(*row) for row in rows if row[1] or keep_empty)


def audit(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    *,
    lattice: AnchorLattice,
    preprocess: Preprocess,
    matcher: Matcher | ATSS = MATCHER,
) -> AnchorAudit:
    """Count what the anchors do for the boxes of a data set, at the size that training sees.

    Boxes are resized as the loader does and every image is padded by itself. Augmentation that changes sizes is not
    taken into account. Exact: IoUs and positives are those of all boxes with all anchors. Images of one size are
    matched together, so a data set of 10,000 boxes takes a fraction of a second.

    Args:
        samples: annotated images; their pixels are not read.
        class_names: K names.
        lattice: the anchors.
        preprocess: the size of training.
        matcher: which anchors answer for which box.
    """
    boxes, labels = [torch.zeros(0, 4, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int64)]
    inputs: list[tuple[int, int]] = []
    together: dict[tuple[tuple[int, int], int], list[Tensor]] = {}  # rows of the images that are matched in one go
    seen: Counter[tuple[int, int]] = Counter()  # boxes of images of each size
    total = 0
    for sample in samples:
        height, width = preprocess.size(*sample.size)
        factors = torch.tensor([width / sample.size[1], height / sample.size[0]]).repeat(2)
        known = sample.target.select(~sample.target.ignore)
        boxes.append(known.boxes * factors)
        labels.append(known.labels)
        padded = preprocess.padded(height, width)
        inputs.append(padded)
        together.setdefault((padded, seen[padded] // MATCHED), []).append(torch.arange(total, total + len(known)))
        seen[padded] += len(known)
        total += len(known)

    every = torch.cat(boxes).float()
    best_iou, level, positives = torch.zeros(total), torch.zeros(total).long(), torch.zeros(total).long()
    forced = torch.zeros(total, dtype=torch.bool)
    for (size, _), images in together.items():
        rows, over = torch.cat(images), lattice.over(*size)
        image = torch.arange(len(images)).repeat_interleave(torch.tensor([len(part) for part in images]))
        match = matcher(over, over.grids(*size), every[rows], torch.zeros_like(rows, dtype=torch.bool), image)
        best_iou[rows], level[rows], positives[rows] = match.best_iou, match.best_level, match.positives
        forced[rows] = match.forced
    return AnchorAudit(
        boxes=every.numpy(),
        labels=torch.cat(labels).numpy(),
        best_iou=best_iou.numpy(),
        level=level.numpy(),
        positives=positives.numpy(),
        forced=forced.numpy(),
        inputs=tuple(inputs),
        class_names=tuple(class_names),
        lattice=lattice,
        preprocess=preprocess,
        matcher=matcher,
    )


def name_octave(k: int) -> str:
    """The pixels of an octave of sizes, in words."""
    return "below 1" if k < 0 else f"{2**k} to {2 ** (k + 1)}"
