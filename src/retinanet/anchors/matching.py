"""Which anchors answer for which object (Lin et al., section 4, "Anchors"), computed on the lattice.

The rule. An anchor takes the box that it overlaps best, the first of several that are equal. It is positive if that IoU
is at least 0.5, ignored in [0.4, 0.5), negative below. The paper stops here, which leaves tiny and extreme boxes
without any anchor; so each box may also force its best anchors to be positive.

The method. The rule reads as a matrix of IoUs, all boxes by all anchors. But an anchor that reaches 0.4 with no box is
negative, whatever its IoUs are, and few anchors reach 0.4 with a box: they must be near it and of about its size.
:mod:`retinanet.anchors.reach` finds those without a look at the rest.

1. All pairs of a box and an anchor with IoU >= 0.4 are found.
2. A box that is in a pair has its best anchors there: any other anchor is below 0.4. For a box that is in none, the
   anchors nearest to its centre, one for each template, show what IoU its best anchor has at least. All anchors that
   can reach it are compared.
3. A forced anchor of step 2 may have a better box than the one that forced it, in a pair below 0.4. That pair has at
   least the IoU with which the anchor was forced. All boxes that can reach it, at these few anchors, are compared.

The pairs found in these steps hold every maximum that the matrix is asked for, so the result is the same, bit for bit.
The cost grows with the boxes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.geometry import area, paired_intersection, paired_iou
from retinanet.anchors.lattice import AnchorLattice, Grids
from retinanet.anchors.reach import Candidates, Reach
from retinanet.errors import UserError
from retinanet.types import Target

COVERED = 0.5  # share of an anchor's area inside an ignore region from which on it is ignored


@dataclass(frozen=True)
class Match:
    """The anchors of one image that are not negative.

    Attributes:
        positive: (P,) int64 flat anchor indices, ascending, each once.
        box: (P,) int64, the row of the target that each positive anchor answers for.
        ignored: (G,) int64 flat anchor indices, ascending, each once, none of them positive.
    """

    positive: Tensor
    box: Tensor
    ignored: Tensor


class Pairs(NamedTuple):
    """Boxes and anchors that overlap: (n,) row of the box, (n,) flat index of the anchor, (n,) IoU."""

    box: Tensor
    anchor: Tensor
    iou: Tensor

    def select(self, keep: Tensor) -> Pairs:
        """The pairs that a mask (n,) names."""
        keep = keep.nonzero().flatten()
        return Pairs(*(part.index_select(0, keep) for part in self))

    @staticmethod
    def none(device: torch.device) -> Pairs:
        """No pairs at all."""
        index = torch.zeros(0, dtype=torch.int64, device=device)
        return Pairs(index, index, index.float())

    def join(self, more: Iterable[Pairs]) -> Pairs:
        """These pairs and more."""
        box, anchor, iou = zip(self, *more, strict=True)
        return Pairs(torch.cat(box), torch.cat(anchor), torch.cat(iou))


@dataclass(frozen=True)
class Matcher:
    """Matches anchors to the boxes of an image.

    Args:
        foreground: IoU from which on an anchor is positive.
        background: IoU below which an anchor is negative; between the two it is ignored.
        forced: what happens to the best anchors of each box, to all of them if several are equal, at any IoU but zero.
            ``"argmax"``: they become positive, each for its own best box, as in detectron2 and torchvision.
            ``"reassign"``: they become positive for the box that forces them, the last one if several do, as in
            mmdetection. ``"off"``: nothing, as in the text of the paper.
        forced_iou: least IoU for being forced; 0.4 with ``"argmax"`` is Detectron. With ``"argmax"`` it is that of the
            anchor with its own best box, with ``"reassign"`` that with the box that forces it, as in either's code.
    """

    foreground: float = 0.5
    background: float = 0.4
    forced: Literal["argmax", "reassign", "off"] = "argmax"
    forced_iou: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.background <= self.foreground <= 1:
            raise UserError(
                "matching needs 0 < background <= foreground <= 1, "
                f"got background {self.background} and foreground {self.foreground}"
            )
        if self.forced not in ("argmax", "reassign", "off"):
            raise UserError(f"matching: forced must be 'argmax', 'reassign' or 'off', got {self.forced!r}")
        if not 0 <= self.forced_iou <= 1:
            raise UserError(f"matching: forced_iou is an IoU between 0 and 1, got {self.forced_iou}")

    def __call__(self, lattice: AnchorLattice, grids: Grids, target: Target) -> Match:
        """Matches the anchors over one image.

        Ignore regions match no anchor. An anchor with at least half of its area inside one is ignored, unless it is
        positive: then it answers for an object that somebody did annotate, whatever else is in the region.

        A box without a positive, finite area matches no anchor either.

        Args:
            lattice: the anchors.
            grids: L grids (H_l, W_l) of the feature maps.
            target: M boxes in pixels of the input, on any device.

        Returns:
            The match, on the device of the boxes.
        """
        boxes = target.boxes.float()
        upright = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
        rows = (upright & ~target.ignore & (area(boxes) > 0) & area(boxes).isfinite()).nonzero().flatten()
        objects, regions = boxes[rows], boxes[upright & target.ignore]
        reach = Reach(lattice, grids, boxes.device)

        pairs = _pairs_above(reach, objects, self.background)
        forced = _best_anchors(reach, objects, pairs) if self.forced != "off" else Pairs.none(boxes.device)
        if self.forced == "reassign":
            forced = forced.select(forced.iou >= self.forced_iou)
        unknown = forced.select(forced.iou < self.background)
        others = _rivals(reach, objects, unknown) if self.forced == "argmax" else unknown
        best = _best_box(pairs.join([others]))

        is_forced = torch.isin(best.anchor, forced.anchor)
        if self.forced == "reassign":
            best.box[is_forced] = _last_box(forced)
        if self.forced == "argmax":
            is_forced &= best.iou >= self.forced_iou
        positive = is_forced | (best.iou >= self.foreground)
        covered = _covered(reach, regions)
        covered = covered[~torch.isin(covered, best.anchor[positive])]
        between = ~positive & (best.iou >= self.background)
        ignored = torch.cat([best.anchor[between], covered]).unique()
        return Match(best.anchor[positive], rows[best.box[positive]], ignored)


def _compare(boxes: Tensor, candidates: Iterable[Candidates]) -> Iterator[Pairs]:
    """Candidates with their IoU, portion by portion."""
    for near in candidates:
        yield Pairs(near.row, near.anchor, paired_iou(boxes.index_select(0, near.row), near.anchor_boxes))


def _pairs_above(reach: Reach, boxes: Tensor, threshold: float) -> Pairs:
    """All pairs with IoU >= threshold."""
    near = _compare(boxes, reach.overlapping(boxes, reach.overlap_for_iou(boxes, threshold)))
    return Pairs.none(boxes.device).join(pairs.select(pairs.iou >= threshold) for pairs in near)


def _best_box(pairs: Pairs) -> Pairs:
    """For each anchor its pair of highest IoU, the first box if several are equal; by ascending anchor."""
    anchor, group = pairs.anchor.unique(return_inverse=True)
    iou = pairs.iou.new_zeros(len(anchor)).scatter_reduce(0, group, pairs.iou, "amax")
    best = pairs.iou == iou[group]
    never = torch.full_like(anchor, torch.iinfo(torch.int64).max)
    return Pairs(never.scatter_reduce(0, group[best], pairs.box[best], "amin"), anchor, iou)


def _last_box(pairs: Pairs) -> Tensor:
    """For each anchor, by ascending anchor, its last box."""
    anchor, group = pairs.anchor.unique(return_inverse=True)
    return torch.full_like(anchor, -1).scatter_reduce(0, group, pairs.box, "amax")


def _best_anchors(reach: Reach, boxes: Tensor, pairs: Pairs) -> Pairs:
    """For each box its pairs of highest IoU, all of them if several are equal, none if that IoU is 0.

    Args:
        reach: the lattice.
        boxes: (m, 4).
        pairs: all pairs above some IoU.
    """
    found, top = _highest(pairs, len(boxes))
    weak = (top == 0).nonzero().flatten()
    distant = _best_anchors_of_weak(reach, boxes[weak])
    return found.join([distant._replace(box=weak[distant.box])])


def _best_anchors_of_weak(reach: Reach, boxes: Tensor) -> Pairs:
    """The same for boxes of which no pair is known.

    Among the anchors of one template the nearest to the box overlaps it most, rounding apart. But where one contains
    the other a whole plateau of anchors does, and rounding decides which of them are equal. So the IoU of the nearest
    is only a bound: the highest is not below it.
    """
    reached = boxes.new_zeros(len(boxes))
    for nearest in _compare(boxes, reach.nearest(boxes)):
        reached.scatter_reduce_(0, nearest.box, nearest.iou, "amax")
    near = _compare(boxes, reach.overlapping(boxes, reach.overlap_for_iou(boxes, reached[:, None])))
    good = (pairs.select((pairs.iou >= reached[pairs.box]) & (pairs.iou > 0)) for pairs in near)
    return _highest(Pairs.none(boxes.device).join(good), len(boxes))[0]


def _highest(pairs: Pairs, boxes: int) -> tuple[Pairs, Tensor]:
    """The pairs whose IoU is the highest of their box, and that IoU (boxes,), 0 for a box in no pair."""
    top = pairs.iou.new_zeros(boxes).scatter_reduce(0, pairs.box, pairs.iou, "amax")
    return pairs.select(pairs.iou == top[pairs.box]), top


def _rivals(reach: Reach, boxes: Tensor, forced: Pairs) -> Pairs:
    """All pairs of the forced anchors with boxes that overlap them at least as well as the box that forced them."""
    if not len(forced.anchor):
        return forced
    weakest = reach.least_area.new_full((len(reach.least_area),), torch.inf)
    weakest.scatter_reduce_(0, reach.template(forced.anchor), forced.iou, "amin")
    overlap = reach.overlap_for_iou(boxes, weakest)
    near = reach.overlapping_among(forced.anchor.unique(), boxes, overlap)
    return Pairs.none(boxes.device).join(_compare(boxes, near))


def _covered(reach: Reach, regions: Tensor) -> Tensor:
    """The anchors with at least the share ``COVERED`` of their area in one of the regions (r, 4): (n,) ascending."""
    covered = torch.zeros(0, dtype=torch.int64, device=regions.device)
    for near in reach.overlapping(regions, COVERED * reach.least_area[None]):
        share = paired_intersection(regions.index_select(0, near.row), near.anchor_boxes) / area(near.anchor_boxes)
        # Regions may overlap: merged portion by portion, no anchor is held twice.
        covered = torch.cat([covered, near.anchor[share >= COVERED]]).unique()
    return covered
