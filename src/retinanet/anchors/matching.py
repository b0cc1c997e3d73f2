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
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_area

from retinanet.anchors.geometry import paired_intersection, paired_iou
from retinanet.anchors.lattice import AnchorLattice, Grids
from retinanet.anchors.reach import Candidates, Reach
from retinanet.errors import UserError

FOREGROUND, BACKGROUND = 0.5, 0.4  # the paper's IoUs
COVERED = 0.5  # share of an anchor's area inside an ignore region from which on it is ignored


class Pairs(NamedTuple):
    """Boxes and anchors that overlap: (n,) row of the box, (n,) number of the anchor, (n,) IoU."""

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


class Overlaps:
    """The IoUs of boxes with the anchors of their images that the matching rule needs.

    Args:
        reach: the lattice over the images, with all M boxes.
        rows: (m,) of the boxes that match anchors.
        threshold: an IoU above 0.
    """

    def __init__(self, reach: Reach, rows: Tensor, threshold: float) -> None:
        self.reach, self.rows, self.threshold = reach, rows, threshold

    @cached_property
    def pairs(self) -> Pairs:
        """All pairs with at least the threshold's IoU."""
        near = self._compare(self.reach.overlapping(self.rows, self.reach.overlap_for_iou(self.rows, self.threshold)))
        return self._none.join(pairs.select(pairs.iou >= self.threshold) for pairs in near)

    @cached_property
    def best(self) -> Pairs:
        """For each box its pairs of highest IoU, all of them if several are equal, none if that IoU is 0."""
        best, top = self._select_highest(self.pairs)
        weak = self.rows[top[self.rows] == 0]
        return best.join([self._find_best_of_weak(weak)]) if len(weak) else best

    def find_rivals(self, forced: Pairs) -> Pairs:
        """All pairs of the forced anchors with boxes that overlap them at least as well as the box that forced them."""
        if not len(forced.anchor):
            return forced
        reach = self.reach
        image, template = reach.image_and_template(forced.anchor)
        templates = len(reach.level)
        weakest = forced.iou.new_full((int(reach.image.max()) + 1, templates), torch.inf)  # of each image and template
        weakest.view(-1).scatter_reduce_(0, image * templates + template, forced.iou, "amin")
        overlap = reach.overlap_for_iou(self.rows, weakest[reach.image[self.rows]])
        return self._none.join(self._compare(reach.overlapping_among(forced.anchor.unique(), self.rows, overlap)))

    def _find_best_of_weak(self, weak: Tensor) -> Pairs:
        """The best pairs of boxes (w,) of which no pair is known.

        Among the anchors of one template the nearest to the box overlaps it most, rounding apart. But where one
        contains the other a whole plateau of anchors does, and rounding decides which of them are equal. So the IoU of
        the nearest is only a bound: the highest is not below it.
        """
        bound = self.reach.boxes.new_zeros(len(self.reach.boxes))
        for nearest in self._compare(self.reach.nearest(weak)):
            bound.scatter_reduce_(0, nearest.box, nearest.iou, "amax")
        overlap = self.reach.overlap_for_iou(weak, bound[weak][:, None])
        near = self._compare(self.reach.overlapping(weak, overlap))
        good = (pairs.select((pairs.iou >= bound[pairs.box]) & (pairs.iou > 0)) for pairs in near)
        return self._select_highest(self._none.join(good))[0]

    def _compare(self, candidates: Iterable[Candidates]) -> Iterator[Pairs]:
        """Candidates with their IoU, portion by portion."""
        for row, anchor, anchor_boxes in candidates:
            yield Pairs(row, anchor, paired_iou(self.reach.boxes.index_select(0, row), anchor_boxes))

    def _select_highest(self, pairs: Pairs) -> tuple[Pairs, Tensor]:
        """The pairs whose IoU is the highest of their box, and that IoU (M,), 0 for a box in no pair."""
        top = pairs.iou.new_zeros(len(self.reach.boxes)).scatter_reduce_(0, pairs.box, pairs.iou, "amax")
        return pairs.select(pairs.iou == top[pairs.box]), top

    @property
    def _none(self) -> Pairs:
        return Pairs.none(self.reach.boxes.device)


@dataclass(frozen=True)
class Match:
    """What the anchors do for M boxes: the anchors that are not negative, and from the side of each box its best one.

    Anchors have numbers: of image i, ``i * lattice.count(grids)`` + the flat index. For one image it is the flat index.

    Attributes:
        positive: (P,) int64 numbers of anchors, ascending, each once.
        box: (P,) int64, the row of the box that each positive anchor answers for.
        ignored: (G,) int64 numbers of anchors, ascending, each once, none of them positive.
        overlaps: the IoUs, computed when they are asked for.
        needed: (M,) float32, the IoU with the box from which on an anchor can answer for it unless it is forced;
            infinite where no anchor can.
    """

    positive: Tensor
    box: Tensor
    ignored: Tensor
    overlaps: Overlaps
    needed: Tensor

    @cached_property
    def best_iou(self) -> Tensor:
        """(M,) float32, the highest IoU of each box with any anchor; 0 for ignore regions and boxes without area."""
        best = self.overlaps.best
        return best.iou.new_zeros(len(self.overlaps.reach.boxes)).scatter_(0, best.box, best.iou)

    @cached_property
    def best_anchor(self) -> Tensor:
        """(M,) int64, the number of the anchor of the highest IoU, the first of several; -1 where the IoU is 0."""
        best, boxes = self.overlaps.best, self.overlaps.reach.boxes
        none = torch.full((len(boxes),), -1, device=boxes.device)
        return none.scatter_reduce_(0, best.box, best.anchor, "amin", include_self=False)

    @cached_property
    def best_level(self) -> Tensor:
        """(M,) int64, the level of that anchor, counted from the finest as 0; -1 where there is none."""
        reach, exists = self.overlaps.reach, self.best_anchor >= 0
        level = torch.full_like(self.best_anchor, -1)
        level[exists] = reach.level[reach.image_and_template(self.best_anchor[exists])[1]]
        return level

    @cached_property
    def positives(self) -> Tensor:
        """(M,) int64, how many anchors answer for each box."""
        return torch.bincount(self.box, minlength=len(self.overlaps.reach.boxes))

    @cached_property
    def forced(self) -> Tensor:
        """(M,) bool, whether the box has positives, but only such as were forced: no anchor has the IoU needed."""
        return (self.positives > 0) & (self.best_iou < self.needed)


@dataclass(frozen=True)
class Matcher:
    """Matches anchors to the boxes of images.

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

    foreground: float = FOREGROUND
    background: float = BACKGROUND
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

    def __call__(
        self, lattice: AnchorLattice, grids: Grids, boxes: Tensor, ignore: Tensor, image: Tensor | None = None
    ) -> Match:
        """Matches the anchors over one image, or over several that have the same grids, each with its own boxes.

        Ignore regions match no anchor. An anchor with at least half of its area inside one is ignored, unless it is
        positive: then it answers for an object that somebody did annotate, whatever else is in the region.

        A box without a positive, finite area matches no anchor either.

        Args:
            lattice: the anchors.
            grids: L grids (H_l, W_l) of the feature maps.
            boxes: (M, 4) xyxy in pixels of the input, on any device.
            ignore: (M,) bool, which of them are ignore regions.
            image: (M,) int64, the number of the image that each belongs to; by default all belong to image 0.

        Returns:
            The match, on the device of the boxes. It is that of one image after the other, bit for bit.
        """
        boxes = boxes.float()
        rows = find_matchable(boxes, ignore)
        reach = Reach(lattice, grids, boxes, image)
        overlaps = Overlaps(reach, rows, self.background)

        forced = overlaps.best if self.forced != "off" else Pairs.none(boxes.device)
        if self.forced == "reassign":
            forced = forced.select(forced.iou >= self.forced_iou)
        unknown = forced.select(forced.iou < self.background)
        others = overlaps.find_rivals(unknown) if self.forced == "argmax" else unknown
        best = select_best_box(overlaps.pairs.join([others]))

        place = torch.searchsorted(best.anchor, forced.anchor)
        is_forced = torch.zeros_like(best.anchor, dtype=torch.bool).index_fill_(0, place, True)
        if self.forced == "reassign":
            last = torch.full_like(best.box, -1).scatter_reduce_(0, place, forced.box, "amax")
            best = best._replace(box=last.where(is_forced, best.box))
        if self.forced == "argmax":
            is_forced &= best.iou >= self.forced_iou
        positive = is_forced | (best.iou >= self.foreground)
        ignored = best.anchor[~positive & (best.iou >= self.background)]
        best = best.select(positive)
        covered = find_covered(reach, ignore, best.anchor)
        if len(covered):
            ignored = torch.cat([ignored, covered]).unique()
        needed = torch.full_like(boxes[:, 0], torch.inf).index_fill_(0, rows, self.foreground)
        return Match(best.anchor, best.box, ignored, overlaps, needed)


def find_matchable(boxes: Tensor, ignore: Tensor) -> Tensor:
    """The rows (m,) of boxes (M, 4) that can match anchors: of a positive, finite area, and no ignore regions (M,)."""
    areas = box_area(boxes)
    return (_is_upright(boxes) & ~ignore & (areas > 0) & areas.isfinite()).nonzero().flatten()


def _is_upright(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def select_best_box(pairs: Pairs) -> Pairs:
    """For each anchor its pair of highest IoU, the first box if several are equal; by ascending anchor."""
    anchor, group = pairs.anchor.unique(return_inverse=True)
    iou = pairs.iou.new_zeros(len(anchor)).scatter_reduce(0, group, pairs.iou, "amax")
    best = pairs.iou == iou[group]
    never = torch.full_like(anchor, torch.iinfo(torch.int64).max)
    return Pairs(never.scatter_reduce(0, group[best], pairs.box[best], "amin"), anchor, iou)


def find_covered(reach: Reach, ignore: Tensor, positive: Tensor) -> Tensor:
    """The anchors with at least the share ``COVERED`` of their area in one region of their image: (n,) ascending.

    Args:
        reach: the lattice over the images.
        ignore: (M,) which of its boxes are ignore regions.
        positive: (P,) numbers of anchors that are left out, because they answer for an object.
    """
    regions = (_is_upright(reach.boxes) & ignore).nonzero().flatten()
    covered = torch.zeros(0, dtype=torch.int64, device=regions.device)
    for row, anchor, anchor_boxes in reach.overlapping(regions, COVERED * reach.least_area[None]):
        share = paired_intersection(reach.boxes.index_select(0, row), anchor_boxes) / box_area(anchor_boxes)
        # Regions may overlap: merged portion by portion, no anchor is held twice.
        covered = torch.cat([covered, anchor[share >= COVERED]]).unique()
    return covered[~torch.isin(covered, positive)]
