"""How well anchors cover the boxes of a data set: the best IoU of every box, and the anchors that answer for it.

Training matches image by image. Here images of one size go together, because which anchors reach a box depends on
nothing but the size of the input: a data set of 10,000 boxes takes a fraction of a second. Which box an anchor takes
does depend on the others of the image; the rule is that of :mod:`retinanet.anchors.matching`, and the result the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.geometry import area, paired_iou
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Matcher
from retinanet.anchors.reach import Reach
from retinanet.images.preprocess import Preprocess
from retinanet.types import Sample

PIECE = 2**12  # boxes looked at together; an image is not split


@dataclass(frozen=True)
class Objects:
    """The boxes of a data set as training sees them.

    Attributes:
        boxes: (M, 4) float32 xyxy in pixels of the resized image, ignore regions left out.
        labels: (M,) int64.
        image: (M,) int64, the sample that each belongs to, ascending.
        inputs: (height, width) of the padded input of each sample. A batch is padded to its largest image, so an image
            may get more anchors below and to the right of it than are counted here.
    """

    boxes: Tensor
    labels: Tensor
    image: Tensor
    inputs: tuple[tuple[int, int], ...]


class Coverage(NamedTuple):
    """What the anchors do for M boxes.

    Attributes:
        iou: (M,) float32, the highest IoU with any anchor of the image; 0 for a box without area.
        level: (M,) int64, the level of that anchor, the finest if several are equal; -1 if the IoU is 0.
        positives: (M,) int64, the anchors that answer for the box.
    """

    iou: Tensor
    level: Tensor
    positives: Tensor


def objects_of(samples: Sequence[Sample], preprocess: Preprocess) -> Objects:
    """The boxes of these samples, resized as the loader does; their images are not read."""
    sizes = [preprocess.size(*sample.size) for sample in samples]
    factors = torch.tensor(
        [(new[1] / sample.size[1], new[0] / sample.size[0]) for new, sample in zip(sizes, samples, strict=True)]
    ).reshape(-1, 2)
    image = torch.arange(len(samples)).repeat_interleave(
        torch.tensor([len(one.target) for one in samples], dtype=torch.int64)
    )
    none = torch.zeros(0, dtype=torch.int64)
    boxes = torch.cat([torch.zeros(0, 4), *(sample.target.boxes for sample in samples)])
    labels = torch.cat([none, *(sample.target.labels for sample in samples)])
    ignored = torch.cat([none.bool(), *(sample.target.ignore for sample in samples)])
    boxes = (boxes * factors.repeat(1, 2)[image]).float()
    inputs = tuple((_padded(height, preprocess), _padded(width, preprocess)) for height, width in sizes)
    return Objects(boxes[~ignored], labels[~ignored], image[~ignored], inputs)


def cover(objects: Objects, lattice: AnchorLattice, matcher: Matcher) -> Coverage:
    """Best IoU, its level and the positives of every box, exact for every lattice."""
    boxes = objects.boxes
    found = Coverage(
        torch.zeros(len(boxes)),
        torch.full((len(boxes),), -1, dtype=torch.int64),
        torch.zeros(len(boxes), dtype=torch.int64),
    )
    for (height, width), rows in _pieces(objects):
        over = lattice.over(height, width)
        reach = Reach(over, over.grids(height, width), boxes.device)
        for whole, part in zip(found, _covered(reach, boxes[rows], objects.image[rows], matcher), strict=True):
            whole[rows] = part
    return found


def _padded(side: int, preprocess: Preprocess) -> int:
    return -(-(side + preprocess.margin) // preprocess.multiple) * preprocess.multiple


def _pieces(objects: Objects) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Rows of boxes with area whose images have the same input size, whole images, about ``PIECE`` at a time."""
    boxes, image = objects.boxes, objects.image
    sound = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & (area(boxes) > 0) & area(boxes).isfinite()
    number = {size: i for i, size in enumerate(dict.fromkeys(objects.inputs))}
    kind = torch.tensor([number[size] for size in objects.inputs], dtype=torch.int64)[image]
    for size, i in number.items():
        rows = (sound & (kind == i)).nonzero().flatten()
        if not len(rows):
            continue
        _, per_image = image[rows].unique_consecutive(return_counts=True)
        per_piece = torch.unique_consecutive((per_image.cumsum(0) - 1) // PIECE, return_inverse=True)[1]
        counts = torch.zeros(int(per_piece[-1]) + 1, dtype=torch.int64).scatter_add_(0, per_piece, per_image)
        for part in rows.split(counts.tolist()):
            yield size, part


class _Pairs(NamedTuple):
    """(n,) rows of boxes, (n,) anchors numbered through all images, (n,) IoU."""

    box: Tensor
    anchor: Tensor
    iou: Tensor

    def select(self, keep: Tensor) -> _Pairs:
        return _Pairs(*(part[keep] for part in self))


def _covered(reach: Reach, boxes: Tensor, image: Tensor, matcher: Matcher) -> Coverage:
    """The same for boxes whose images have one size.

    The anchors that may be positive for a box are those above the foreground IoU and, if they are forced, its best. So
    for each box all anchors are found that reach the lower of the two.
    """
    count = reach.lattice.count(reach.grids)
    top = boxes.new_zeros(len(boxes))
    for near in reach.nearest(boxes):  # a bound: rounding may let another anchor have a little more
        top.scatter_reduce_(0, near.row, paired_iou(boxes[near.row], near.anchor_boxes), "amax")
    least = top.clamp(max=matcher.foreground)
    parts = []
    for near in reach.overlapping(boxes, reach.overlap_for_iou(boxes, least[:, None])):
        pairs = _Pairs(near.row, near.anchor, paired_iou(boxes[near.row], near.anchor_boxes))
        parts.append(pairs.select((pairs.iou >= least[pairs.box]) & (pairs.iou > 0)))
    pairs = _Pairs(*(torch.cat(part) for part in zip(*parts, strict=True))) if parts else _none()
    top.scatter_reduce_(0, pairs.box, pairs.iou, "amax")
    best = pairs.select(pairs.iou == top[pairs.box])
    first = torch.full((len(boxes),), count).scatter_reduce(0, best.box, best.anchor, "amin")
    level = torch.full_like(first, -1)
    level[first < count] = reach.lattice.locate(first[first < count], reach.grids)[0]
    apart = (image - image[:1]) * count
    pairs, best = (part._replace(anchor=part.anchor + apart[part.box]) for part in (pairs, best))
    return Coverage(top, level, _positives(pairs, best, boxes, image, reach, matcher))


def _positives(pairs: _Pairs, best: _Pairs, boxes: Tensor, image: Tensor, reach: Reach, matcher: Matcher) -> Tensor:
    """How many anchors answer for each box, by the rule of :class:`~retinanet.anchors.matching.Matcher`.

    Args:
        pairs: all pairs at the foreground IoU, and more.
        best: of each box its pairs of highest IoU.
        boxes: (m, 4).
        image: (m,) of each box.
        reach: the lattice over each image.
        matcher: the rule.
    """
    forced = best if matcher.forced != "off" else best.select(best.iou >= torch.inf)
    if matcher.forced == "reassign":
        forced = forced.select(forced.iou >= matcher.forced_iou)
    more = _rivals(forced.select(forced.iou < matcher.foreground), boxes, image, reach)
    pairs = _Pairs(*(torch.cat(part) for part in zip(pairs, *more, strict=True)))
    anchor, group = pairs.anchor.unique(return_inverse=True)
    iou = boxes.new_zeros(len(anchor)).scatter_reduce(0, group, pairs.iou, "amax")
    winner = pairs.iou == iou[group]
    box = torch.full_like(anchor, len(boxes)).scatter_reduce(0, group[winner], pairs.box[winner], "amin")
    is_forced = torch.isin(anchor, forced.anchor)
    if matcher.forced == "reassign":
        place = torch.searchsorted(anchor, forced.anchor)
        box[is_forced] = torch.full_like(anchor, -1).scatter_reduce(0, place, forced.box, "amax")[is_forced]
    else:
        is_forced &= iou >= matcher.forced_iou
    return torch.bincount(box[is_forced | (iou >= matcher.foreground)], minlength=len(boxes))


def _rivals(forced: _Pairs, boxes: Tensor, image: Tensor, reach: Reach) -> Iterator[_Pairs]:
    """The pairs of forced anchors with boxes of their image that overlap them as well as the box that forced them."""
    if not len(forced.box):
        return
    count = reach.lattice.count(reach.grids)
    place = image.unique_consecutive(return_inverse=True)[1]  # (m,) of each box, the number of its image among these
    template = reach.template(forced.anchor % count)
    weakest = boxes.new_full((int(place[-1]) + 1, len(reach.level)), torch.inf)
    weakest.view(-1).scatter_reduce_(0, place[forced.box] * len(reach.level) + template, forced.iou, "amin")
    wanted = forced.anchor.unique()
    for near in reach.overlapping(boxes, reach.overlap_for_iou(boxes, weakest[place])):
        anchor = near.anchor + (image[near.row] - image[0]) * count
        found = torch.searchsorted(wanted, anchor).clamp(max=len(wanted) - 1)
        keep = (wanted[found] == anchor).nonzero().flatten()
        row = near.row[keep]
        yield _Pairs(row, anchor[keep], paired_iou(boxes[row], near.anchor_boxes[keep]))


def _none() -> _Pairs:
    index = torch.zeros(0, dtype=torch.int64)
    return _Pairs(index, index, index.float())
