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
from torchvision.ops import box_area

from retinanet.anchors.lattice import AnchorLattice, Grids

CHUNK = 2**15  # candidates in memory at a time, about 200 bytes each


class Candidates(NamedTuple):
    """Pairs of a box and an anchor: (n,) row of the box, (n,) number of the anchor, (n, 4) the anchor itself."""

    row: Tensor
    anchor: Tensor
    anchor_boxes: Tensor


class Windows(NamedTuple):
    """n windows of the lattice, each for one box and one template; a window begins at lattice point (x, y)."""

    row: Tensor
    template: Tensor
    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor


class Reach:
    """The lattice over the images of some boxes, asked from the side of the boxes.

    The T = L * A templates of all levels are treated alike: template t is number t % A of level t // A. An anchor of
    image i has the number ``i * per_image`` + its flat index, so a box meets the anchors of its own image only.

    Args:
        lattice: the anchors.
        grids: L grids (H_l, W_l), the same for every image, whatever its size suggests.
        boxes: (M, 4) float32 xyxy of all images; the methods take rows of it.
        image: (M,) int64, the image of each box; all are of image 0 by default.
    """

    def __init__(self, lattice: AnchorLattice, grids: Grids, boxes: Tensor, image: Tensor | None = None) -> None:
        device = boxes.device
        self.lattice, self.grids, self.boxes = lattice, grids, boxes
        self.image = torch.zeros(len(boxes), dtype=torch.int64, device=device) if image is None else image
        self.per_image = lattice.count(grids)
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

    def image_and_template(self, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of anchors (n,) -> their images and their templates, both (n,)."""
        image = torch.div(anchor, self.per_image, rounding_mode="floor")
        level, _, _, a = self.lattice.locate(anchor - image * self.per_image, self.grids)
        return image, level * self.lattice.num_anchors + a

    def overlap_for_iou(self, rows: Tensor, threshold: Tensor | float) -> Tensor:
        """The least common area (m, T) of the boxes of m rows and templates whose IoU reaches a threshold.

        The threshold is one for all or a tensor that broadcasts to (m, T). An infinite one is out of reach; one that is
        0, or so small that its inverse is not finite, is reached by all that touch.
        """
        threshold = torch.as_tensor(threshold, device=rows.device)
        return 1 / (1 + 1 / threshold) * (self.least_area + box_area(self.boxes[rows])[:, None])

    def overlapping(self, rows: Tensor, overlap: Tensor) -> Iterator[Candidates]:
        """Every anchor that overlaps a box by the area asked for, and a few that do not, in bounded portions.

        Args:
            rows: (m,) of boxes with x2 > x1 and y2 > y1.
            overlap: (m, T) or (1, T), the least common area of box and template.
        """
        for windows in self._windows(rows, overlap):
            for (row, template, left, top, width, _), count in _portions(windows, windows.width * windows.height):
                window, step = _items(count)
                width = width.index_select(0, window)
                down = torch.div(step, width, rounding_mode="floor")
                x = left.index_select(0, window) + step - down * width
                y = top.index_select(0, window) + down
                yield self._candidates(row.index_select(0, window), template.index_select(0, window), x, y)

    def overlapping_among(self, anchors: Tensor, rows: Tensor, overlap: Tensor) -> Iterator[Candidates]:
        """As :meth:`overlapping`, but of these anchors only: (n,) numbers, each once.

        A row of a window is a run of lattice points. Bisection finds the anchors in it without a look at every point.
        """
        image, template = self.image_and_template(anchors)
        flat = anchors - image * self.per_image
        _, y, x, _ = self.lattice.locate(flat, self.grids)
        places, order = self._places(image, template, x, y).sort()
        anchors, flat = anchors[order], flat[order]
        for windows in self._windows(rows, overlap):
            for (row, template, left, top, width, _), height in _portions(windows, windows.height):
                window, step = _items(height)
                columns = self.size[:, 0].index_select(0, template)
                run = self._places(self.image[row], template, left, top)[window] + step * columns[window]
                begin = torch.searchsorted(places, run)
                end = torch.searchsorted(places, run + width[window])
                for (row_of_run, first), count in _portions((row[window], begin), end - begin):
                    which, step = _items(count)
                    found = first[which] + step
                    yield Candidates(row_of_run[which], anchors[found], self.lattice.boxes(flat[found], self.grids))

    def nearest(self, rows: Tensor) -> Iterator[Candidates]:
        """For every box the anchor of each template that lies nearest to its centre, in bounded portions."""
        exists = (self.size > 0).all(dim=1).nonzero().flatten()
        for part in self._portions_of(rows):
            boxes = self.boxes[part]
            centre = boxes[:, :2] + 0.5 * (boxes[:, 2:] - boxes[:, :2])
            point = (centre[:, None] / self.stride[exists] - self.lattice.offset).round()  # (m, T, 2)
            x, y = point.clamp(min=0).minimum(self.size[exists] - 1).long().flatten(0, 1).unbind(1)
            yield self._candidates(part.repeat_interleave(len(exists)), exists.repeat(len(part)), x, y)

    def _windows(self, rows: Tensor, overlap: Tensor) -> Iterator[Windows]:
        """The argument above, for pairs of box and template; empty windows are left out."""
        portions = self._portions_of(rows), self._portions_of(overlap.expand(len(rows), -1))
        for part, common in zip(*portions, strict=True):  # (m,), (m, T)
            boxes = self.boxes[part]
            low, high = boxes[:, None, :2], boxes[:, None, 2:]  # (m, 1, 2) each
            most = torch.minimum(high - low, self.most_sides)  # (m, T, 2)
            least = common[..., None] / most.flip(-1) - self.slack
            first = (low + least - self.right_bottom) / self.stride - self.lattice.offset
            last = (high - least - self.left_top) / self.stride - self.lattice.offset
            first, last = first.ceil().clamp(min=0), torch.minimum(last.floor(), self.size - 1)
            possible = (common <= most.prod(dim=-1)) & (first <= last).all(dim=-1)
            entry, template = possible.nonzero(as_tuple=True)
            first, last = first[entry, template].long(), last[entry, template].long()
            yield Windows(part[entry], template, *first.unbind(1), *(last - first + 1).unbind(1))

    def _portions_of(self, values: Tensor) -> tuple[Tensor, ...]:
        """So many of m values at a time that with every template they make about ``CHUNK`` pairs; none for m = 0."""
        return values.split(max(1, CHUNK // len(self.level))) if len(values) else ()

    def _candidates(self, row: Tensor, template: Tensor, x: Tensor, y: Tensor) -> Candidates:
        level, a = self.level.index_select(0, template), template % self.lattice.num_anchors
        flat = self.lattice.index(level, y, x, a, self.grids)
        anchor = flat.add_(self.image.index_select(0, row), alpha=self.per_image)
        return Candidates(row, anchor, self.lattice.boxes_at(level, y, x, a))

    def _places(self, image: Tensor, template: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Numbers of anchors that count template by template, so that a run of lattice points is a run of numbers."""
        cells = self.size.prod(dim=1)
        start, columns = cells.cumsum(0) - cells, self.size[:, 0]
        place = start.index_select(0, template) + y * columns.index_select(0, template) + x
        return place + image * self.per_image


def _portions(parts: tuple[Tensor, ...], count: Tensor) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Splits n entries, of which each stands for ``count`` items, so that about ``CHUNK`` items come at a time."""
    sizes = torch.unique_consecutive(count.cumsum(0) // CHUNK, return_counts=True)[1].tolist()
    for *split, counts in zip(*(part.split(sizes) for part in (*parts, count)), strict=True):
        yield tuple(split), counts


def _items(count: Tensor) -> tuple[Tensor, Tensor]:
    """Counts (3, 1, 2) -> 0 0 0 1 2 2 and 0 1 2 0 0 1: the entry of each item, and its number within the entry."""
    entry = torch.arange(len(count), device=count.device).repeat_interleave(count)
    start = count.cumsum(0) - count
    return entry, torch.arange(len(entry), device=count.device) - start.index_select(0, entry)
