"""Which anchors can overlap a box by a given area: a few small windows of the lattice, found without touching the rest.

The argument. Let an anchor of sides (w, h) overlap a box of sides (W, H) by ``ox`` pixels along x and ``oy`` along y.
However they lie, ``ox <= min(w, W)`` and ``oy <= min(h, H)``. So a common area of at least R needs::

    ox >= R / min(h, H)    and    oy >= R / min(w, W)

and is impossible if ``R > min(w, W) * min(h, H)``. Now ``ox`` pixels are common only if the anchor's right edge lies at
least ``ox`` to the right of the box's left edge, and its left edge at least ``ox`` to the left of the box's right edge.
That bounds the anchor's centre from both sides; the same holds along y. So the centres lie in a rectangle, and as the
anchors of one level and one template form a grid, the rectangle is a window of rows and columns of that grid.

An IoU is such an area: of areas a and A, ``i / (a + A - i) >= t`` if and only if ``i >= t / (1 + t) * (a + A)``.

A window may hold anchors that fail the exact test, as those in its corners do, but misses none that passes. Against
rounding, windows are wider than the argument says by a few steps of float32 (``slack``). Whoever asks repeats the test
on what is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from retinanet.anchors.geometry import area
from retinanet.anchors.lattice import AnchorLattice, Grids

CHUNK = 2**15  # candidates in memory at a time, about 200 bytes each


class Candidates(NamedTuple):
    """Pairs of a box and an anchor: (n,) row of the box, (n,) flat index of the anchor, (n, 4) the anchor itself."""

    row: Tensor
    anchor: Tensor
    anchor_boxes: Tensor


class Windows(NamedTuple):
    """Windows of the lattice, n of them, each for one box and one template, from lattice point (x, y) on."""

    row: Tensor
    template: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor


class Reach:
    """The lattice over one image, asked from the side of the boxes.

    The T = L * A templates of all levels are treated alike: template t is number t % A of level t // A.

    Args:
        lattice: the anchors.
        grids: L grids (H_l, W_l), whatever the size of the image suggests.
        device: where to compute.
    """

    def __init__(self, lattice: AnchorLattice, grids: Grids, device: torch.device) -> None:
        self.lattice, self.grids = lattice, grids
        corners = lattice.templates(device).flatten(0, 1)  # (T, 4)
        self.left_top, self.right_bottom = corners[:, :2], corners[:, 2:]
        self.level = torch.arange(lattice.num_levels, device=device).repeat_interleave(lattice.num_anchors)  # (T,)
        steps = torch.tensor(lattice.steps, dtype=torch.float32, device=device).flip(1)  # (L, 2), across and down
        self.stride = steps[self.level]  # (T, 2)
        self.size = torch.tensor([(columns, rows) for rows, columns in grids], device=device)[self.level]  # (T, 2)
        sides = self.right_bottom - self.left_top
        extent = (self.size * self.stride).max() + sides.max() + abs(lattice.offset) * self.stride.max()
        # 32 steps of float32 in the far corner of the lattice: more than rounding moves an edge of an anchor and, as no
        # side is longer than the extent, more than it changes an area or an IoU.
        self.slack = 2**-18 * float(extent)
        self.most_sides = sides + self.slack  # (T, 2)
        self.least_area = (sides - self.slack).clamp(min=0).prod(dim=1)  # (T,)

    def template(self, anchor: Tensor) -> Tensor:
        """Flat indices of anchors (n,) -> their templates (n,)."""
        level, _, _, a = self.lattice.locate(anchor, self.grids)
        return level * self.lattice.num_anchors + a

    def overlap_for_iou(self, boxes: Tensor, threshold: Tensor | float) -> Tensor:
        """The least common area (m, T) of boxes (m, 4) and templates whose IoU reaches a threshold.

        The threshold is one for all or a tensor that broadcasts to (m, T). An infinite one is out of reach; one that is
        0, or so small that its inverse is not finite, is reached by all that touch.
        """
        threshold = torch.as_tensor(threshold, device=boxes.device)
        return 1 / (1 + 1 / threshold) * (self.least_area + area(boxes)[:, None])

    def overlapping(self, boxes: Tensor, overlap: Tensor) -> Iterator[Candidates]:
        """Every anchor that overlaps a box by the area asked for, and a few that do not, in bounded portions.

        Args:
            boxes: (m, 4) xyxy with x2 > x1 and y2 > y1.
            overlap: (m, T) or (1, T), the least common area of box and template.

        Yields:
            Candidates whose ``row`` counts the rows of ``boxes``.
        """
        for windows in self._windows(boxes, overlap):
            for (row, template, left, top, width, _), count in _portions(windows, windows.width * windows.height):
                width = width.repeat_interleave(count)
                step = _steps(count)
                down = torch.div(step, width, rounding_mode="floor")
                x = left.repeat_interleave(count) + step - down * width
                y = top.repeat_interleave(count) + down
                yield self._candidates(row.repeat_interleave(count), template.repeat_interleave(count), x, y)

    def overlapping_among(self, anchors: Tensor, boxes: Tensor, overlap: Tensor) -> Iterator[Candidates]:
        """As :meth:`overlapping`, but of these anchors only: (n,) flat indices, each once.

        A row of a window is a run of lattice points. Bisection finds the anchors in it without a look at every point.
        """
        _, y, x, _ = self.lattice.locate(anchors, self.grids)
        places, order = self._places(self.template(anchors), x, y).sort()
        anchors = anchors[order]
        for windows in self._windows(boxes, overlap):
            for (row, template, left, top, width, _), height in _portions(windows, windows.height):
                columns = self.size[:, 0].index_select(0, template).repeat_interleave(height)
                run = self._places(template, left, top).repeat_interleave(height) + _steps(height) * columns
                begin = torch.searchsorted(places, run)
                end = torch.searchsorted(places, run + width.repeat_interleave(height))
                for (row_of_run, first), count in _portions((row.repeat_interleave(height), begin), end - begin):
                    anchor = anchors.index_select(0, first.repeat_interleave(count) + _steps(count))
                    anchor_boxes = self.lattice.boxes(anchor, self.grids)
                    yield Candidates(row_of_run.repeat_interleave(count), anchor, anchor_boxes)

    def nearest(self, boxes: Tensor) -> Iterator[Candidates]:
        """For every box the anchor of each template that lies nearest to its centre, in bounded portions."""
        exists = (self.size > 0).all(dim=1).nonzero().flatten()
        for rows, part in self._portions_of(boxes):
            centre = part[:, :2] + 0.5 * (part[:, 2:] - part[:, :2])
            point = (centre[:, None] / self.stride[exists] - self.lattice.offset).round()  # (m, T, 2)
            x, y = point.clamp(min=0).minimum(self.size[exists] - 1).long().flatten(0, 1).unbind(1)
            yield self._candidates(rows.repeat_interleave(len(exists)), exists.repeat(len(rows)), x, y)

    def _windows(self, boxes: Tensor, overlap: Tensor) -> Iterator[Windows]:
        """The argument above, for pairs of box and template; empty windows are left out."""
        overlap = overlap.expand(len(boxes), -1)
        for rows, part in self._portions_of(boxes):
            low, high, common = part[:, None, :2], part[:, None, 2:], overlap[rows]  # (m, 1, 2) twice, (m, T)
            most = torch.minimum(high - low, self.most_sides)  # (m, T, 2)
            least = common[..., None] / most.flip(-1) - self.slack
            first = (low + least - self.right_bottom) / self.stride - self.lattice.offset
            last = (high - least - self.left_top) / self.stride - self.lattice.offset
            first, last = first.ceil().clamp(min=0), torch.minimum(last.floor(), self.size - 1)
            possible = (common <= most.prod(dim=-1)) & (first <= last).all(dim=-1)
            row, template = possible.nonzero(as_tuple=True)
            first, last = first[row, template].long(), last[row, template].long()
            yield Windows(rows[row], template, *first.unbind(1), *(last - first + 1).unbind(1))

    def _portions_of(self, boxes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and boxes, so many at a time that with every template they make about ``CHUNK`` pairs."""
        at_once = max(1, CHUNK // len(self.level))
        for first in range(0, len(boxes), at_once):
            part = boxes[first : first + at_once]
            yield torch.arange(first, first + len(part), device=boxes.device), part

    def _candidates(self, row: Tensor, template: Tensor, x: Tensor, y: Tensor) -> Candidates:
        level, a = self.level.index_select(0, template), template % self.lattice.num_anchors
        anchor = self.lattice.index(level, y, x, a, self.grids)
        return Candidates(row, anchor, self.lattice.boxes_at(level, y, x, a))

    def _places(self, template: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Numbers of anchors that count template by template, so that a run of lattice points is a run of numbers."""
        cells = self.size.prod(dim=1)
        start, columns = cells.cumsum(0) - cells, self.size[:, 0]
        return start.index_select(0, template) + y * columns.index_select(0, template) + x


def _portions(parts: tuple[Tensor, ...], count: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Splits n entries, of which each stands for ``count`` items, so that about ``CHUNK`` items come at a time."""
    sizes = torch.unique_consecutive(count.cumsum(0) // CHUNK, return_counts=True)[1].tolist()
    for *split, counts in zip(*(part.split(sizes) for part in (*parts, count)), strict=True):
        yield tuple(split), counts


def _steps(count: Tensor) -> Tensor:
    """Counts (3, 1, 2) -> 0 1 2, 0, 0 1: the number of each item within its entry."""
    start = count.cumsum(0) - count
    return torch.arange(int(count.sum()), device=count.device) - start.repeat_interleave(count)
