"""Adaptive training sample selection (ATSS, Zhang et al. 2020, arXiv 1912.02424, algorithm 1), on the lattice.

The rule. The candidates of a box are the anchors at the k cells of each level whose centres lie nearest to its own.
The mean plus the standard deviation of the candidates' IoUs with the box is what an anchor needs; a candidate that has
it is positive if its centre lies inside the box. An anchor that several boxes want answers for the one that it overlaps
best, the first of several that are equal. All other anchors are negative.

So the threshold fits the box: where anchors fit it well only the best answer for it, and where none does, as for the
smallest and the longest objects, the best that there are still do. No IoU has to be chosen.

Each cell here has A anchors of several shapes, and all of them are candidates; in the paper A is 1.

The method. The k nearest columns and rows of a grid are known from the box alone. A cell in the i-th nearest column
and the j-th nearest row is at least as far as the i * j cells of the nearer columns and rows, so that it can be among
the k nearest only if i * j <= k. That leaves 23 cells to sort where k is 9, however large the grid is. The cost is
k * L * A overlaps for each box, and nothing for an anchor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.anchors.geometry import paired_iou
from retinanet.anchors.lattice import AnchorLattice, Grids
from retinanet.anchors.matching import BACKGROUND, Match, Overlaps, Pairs, find_covered, find_matchable, select_best_box
from retinanet.anchors.reach import Reach
from retinanet.errors import UserError

CHUNK = 2**18  # candidates in memory at a time, about 200 bytes each


@dataclass(frozen=True)
class ATSS:
    """Matches anchors to the boxes of images; it is called as :class:`~retinanet.anchors.matching.Matcher` is.

    Args:
        cells: k, of each level.
        forced: a box without a positive candidate, because no centre lies inside of it, takes the candidate that
            overlaps it best, the first of several, at any IoU but zero. The paper leaves it without an anchor. A box
            that loses its anchors to others stays without.
    """

    cells: int = 9
    forced: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.cells <= 1000:
            raise UserError(f"matching: ATSS looks at 1 to 1000 cells of a level, got {self.cells}")

    def __call__(
        self, lattice: AnchorLattice, grids: Grids, boxes: Tensor, ignore: Tensor, image: Tensor | None = None
    ) -> Match:
        """Matches the anchors over one image, or over several that have the same grids, each with its own boxes.

        Ignore regions and boxes without a positive, finite area match no anchor. An anchor with at least half of its
        area inside an ignore region is ignored, unless it is positive.

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
        reach = Reach(lattice, grids, boxes, image)
        rows = find_matchable(boxes, ignore)
        needed = torch.full_like(boxes[:, 0], torch.inf)
        pairs = [Pairs.none(boxes.device)]
        exists = any(height and width for height, width in grids)
        size = max(1, CHUNK // (self.cells * lattice.num_levels * lattice.num_anchors))
        for part in rows.split(size) if len(rows) and exists else ():
            first, overlap, inside = self._find_candidates(reach, part)
            threshold = _mean_plus_deviation(overlap)
            positive = (overlap >= threshold[:, None, None]) & inside[..., None]
            answered = positive.flatten(1).any(dim=1)
            needed[part] = threshold.float().where(answered, torch.inf)
            if self.forced and not answered.all():
                positive[~answered] = _is_best(first[~answered], overlap[~answered])
            entry, cell, a = positive.nonzero().unbind(1)
            pairs.append(Pairs(part[entry], first[entry, cell] + a, overlap[entry, cell, a]))
        best = select_best_box(pairs[0].join(pairs[1:]))
        ignored = find_covered(reach, ignore, best.anchor)
        return Match(best.anchor, best.box, ignored, Overlaps(reach, rows, BACKGROUND), needed)

    def _find_candidates(self, reach: Reach, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The candidates of m boxes, those at c cells for each.

        Returns:
            Of each cell the number of its first anchor (m, c), the IoUs of its anchors (m, c, A) with the box, whether
            its centre lies inside the box (m, c).
        """
        lattice, boxes = reach.lattice, reach.boxes[rows]
        left, top, right, bottom = boxes.T[:, :, None]  # (m, 1) each
        start, parts = reach.image[rows] * reach.per_image, []
        for level, ((height, width), (down, across)) in enumerate(zip(reach.grids, lattice.steps, strict=True)):
            if height and width:
                y, x = self._find_nearest_cells(boxes, (height, width), (down, across), lattice.offset)  # (m, c)
                first = start[:, None] + (y * width + x) * lattice.num_anchors
                across_at, down_at = (x.float() + lattice.offset) * across, (y.float() + lattice.offset) * down
                inside = (left < across_at) & (across_at < right) & (top < down_at) & (down_at < bottom)
                centre = torch.stack([across_at, down_at, across_at, down_at])  # (4, m, c)
                # (4, m, c, 1) + (4, 1, 1, A) -> (4, m, c, A), so that each coordinate is one run of memory
                anchor_boxes = centre[..., None] + lattice.templates(boxes.device)[level].T[:, None, None]
                parts.append((first, paired_iou(boxes[:, None, None], anchor_boxes.movedim(0, -1)), inside))
            start = start + height * width * lattice.num_anchors
        first, overlap, inside = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        return first, overlap, inside

    def _find_nearest_cells(
        self, boxes: Tensor, grid: tuple[int, int], step: tuple[int, int], offset: float
    ) -> tuple[Tensor, Tensor]:
        """Row and column (m, c) of the cells nearest to the centres of m boxes, the first by number of equal ones."""
        (height, width), (down, across) = grid, step
        centre = (boxes[:, :2].double() + boxes[:, 2:].double()) / 2
        columns, dx = _find_nearest(centre[:, 0], across, offset, width, self.cells)  # (m, min(k, W))
        rows, dy = _find_nearest(centre[:, 1], down, offset, height, self.cells)
        i, j = (1 + torch.arange(near.shape[1], device=boxes.device) for near in (columns, rows))
        i, j = (i[:, None] * j <= self.cells).nonzero(as_tuple=True)
        cell = rows.index_select(1, j) * width + columns.index_select(1, i)
        distance = dx.square().index_select(1, i) + dy.square().index_select(1, j)
        by_number = cell.argsort(dim=1)
        cell, distance = cell.gather(1, by_number), distance.gather(1, by_number)
        nearest = distance.argsort(dim=1, stable=True)[:, : self.cells]
        cell = cell.gather(1, nearest)
        row = torch.div(cell, width, rounding_mode="floor")
        return row, cell - row * width


def _find_nearest(centre: Tensor, step: int, offset: float, count: int, most: int) -> tuple[Tensor, Tensor]:
    """The nearest of ``count`` rows or columns to m centres, nearest first, the first of equal ones; and how far.

    Returns:
        Numbers and distances in pixels, both (m, min(most, count)), the distances in float64.
    """
    kept, looked = min(most, count), min(most + 2, count)
    # One more on either side, so that rounding here decides nothing.
    first = (centre / step - offset - most / 2).ceil() - 1
    number = first.clamp(min=0, max=count - looked).long()[:, None] + torch.arange(looked, device=centre.device)
    distance = ((number.double() + offset) * step - centre[:, None]).abs()
    distance, order = distance.sort(dim=1, stable=True)
    return number.gather(1, order)[:, :kept], distance[:, :kept]


def _mean_plus_deviation(overlap: Tensor) -> Tensor:
    """What an anchor needs, (m, c, A) -> (m,); in float64, so that the order of the sums decides nothing."""
    overlap = overlap.double().flatten(1)
    mean = overlap.mean(dim=1)
    squares = (overlap - mean[:, None]).square_().sum(dim=1)
    return mean + (squares / max(overlap.shape[1] - 1, 1)).sqrt()


def _is_best(first: Tensor, overlap: Tensor) -> Tensor:
    """Marks the highest IoU of each row, the lowest number of equal ones, none where it is 0: (m, c, A) bool."""
    best = (overlap == overlap.amax(dim=(1, 2), keepdim=True)) & (overlap > 0)
    number = first[..., None] + torch.arange(overlap.shape[2], device=first.device)
    number = number.where(best, torch.iinfo(torch.int64).max)
    return best & (number == number.amin(dim=(1, 2), keepdim=True))
