"""The search for anchors that cover more boxes: a smooth count, climbed along its coordinates from several starts.

The coordinates are the logarithms of the sizes, ratios and scales. Each box is compared where it lies on the lattice,
not centred on an anchor. No level may come closer to its neighbour than half of their distance before, in octaves, nor
further away than twice of it: the count alone would put the anchors of coarse levels, which see least detail, among
those of fine ones.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retinanet.analysis.anchors.audit import AnchorAudit
from retinanet.anchors.lattice import AnchorLattice

SAMPLE = 1000  # boxes that are looked at
SOFTNESS = 0.04  # of the count, in IoU
UNEVEN = 0.02  # cost of an octave by which a level departs from the others
LITTLE = 0.01  # of the count, and a fifth of it of the covered boxes, for which nothing is changed
STEPS = (0.5, 0.25, 0.12, 0.06, 0.03)  # in octaves
STARTS = (-3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1)  # octaves that all sizes are moved by
Vector = NDArray[np.float64]


def fit_lattice(audited: AnchorAudit) -> AnchorLattice:
    """Anchors that cover more of the boxes of an audit; sizes, ratios and scales are changed, nothing else.

    Args:
        audited: the boxes, of which at least one has an area, and the anchors now.

    Returns:
        The lattice with numbers that a person would write; sizes, ratios or scales that hardly matter as they were.
    """
    rng, lattice = np.random.default_rng(0), audited.lattice
    fit = Fit(audited, rng)
    means = tuple(np.exp(_find_means(fit.shapes, len(lattice.ratios))).tolist())
    starts = [
        replace(lattice, sizes=tuple(size * 2**octaves for size in lattice.sizes), ratios=ratios)
        for octaves in STARTS
        for ratios in (lattice.ratios, means)
    ]
    best = max((_climb(fit, start) for start in sorted(starts, key=fit, reverse=True)[:3]), key=fit)
    for _ in range(2):
        kick = rng.normal(0, 0.2, len(best.sizes + best.ratios + best.scales))
        best = max(best, _climb(fit, _move(best, kick)), key=fit)
    return _restore_what_hardly_matters(fit, _round(best))


class Fit:
    """The smooth count of covered boxes, for lattices that differ from the audit's in sizes, ratios and scales.

    Of the anchors of one template the nearest to a box overlaps it most, and which one that is does not depend on the
    template. So each box is moved once per level to the centre of its nearest cell and compared with templates there.

    Args:
        audited: the boxes, the anchors now, and the foreground IoU at which a box is covered.
        rng: draws the boxes that are looked at.
    """

    def __init__(self, audited: AnchorAudit, rng: np.random.Generator) -> None:
        self.lattice, self.foreground = audited.lattice, audited.foreground
        sides = audited.sides.astype(np.float64)
        rows = np.flatnonzero((sides > 0).all(axis=1))
        rows = np.sort(rng.choice(rows, min(SAMPLE, len(rows)), replace=False))
        self.shapes = np.log(sides[rows, 1] / sides[rows, 0])
        boxes = audited.boxes[rows, None]  # (n, 1, 4)
        steps = np.array(self.lattice.over(*max(audited.inputs, key=math.prod)).steps, dtype=np.float32)[
            :, ::-1
        ]  # (L, 2)
        corners = self.lattice.templates().numpy()
        aside = ((corners[..., :2] + corners[..., 2:]) / 2).mean(axis=(0, 1))  # half a pixel where edges are inclusive
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2 - aside
        offset = self.lattice.offset
        nearest = (np.maximum(np.rint(centre / steps - offset), 0) + offset) * steps  # (n, L, 2)
        around = (boxes - np.tile(nearest, 2)).astype(np.float32).transpose(2, 0, 1)[..., None]
        self.left, self.top, self.right, self.bottom = np.ascontiguousarray(around)  # (n, L, 1) each
        self.area = ((self.right - self.left) * (self.bottom - self.top))[:, :1]

    def iou(self, lattice: AnchorLattice) -> NDArray[np.float32]:
        """(n,) the highest IoU of each box."""
        left, top, right, bottom = np.ascontiguousarray(lattice.templates().numpy().transpose(2, 0, 1))  # (L, A) each
        across = np.minimum(self.right, right) - np.maximum(self.left, left)
        down = np.minimum(self.bottom, bottom) - np.maximum(self.top, top)
        inside = np.maximum(across, 0) * np.maximum(down, 0)  # (n, L, A)
        best: NDArray[np.float32] = (inside / (self.area + (right - left) * (bottom - top) - inside)).max(axis=(1, 2))
        return best

    def count(self, lattice: AnchorLattice) -> float:
        """About the share of covered boxes; the mean IoU leads where no box is near, uneven sizes cost a little."""
        iou = self.iou(lattice)
        moved = np.log2(lattice.sizes) - np.log2(self.lattice.sizes)
        uneven = float(np.abs(moved - np.median(moved)).mean())
        covered = 1 / (1 + np.exp((self.foreground - iou) / SOFTNESS))
        return float(0.9 * covered.mean() + 0.1 * iou.mean()) - UNEVEN * uneven

    def __call__(self, lattice: AnchorLattice) -> float:
        """The count; minus infinity where two levels are too close or too far apart."""
        old, new = (np.diff(np.log2(sizes)) for sizes in (self.lattice.sizes, lattice.sizes))
        allowed = np.abs(new - 1.25 * old) <= 0.75 * np.abs(old) + 1e-9  # half to twice of it
        return self.count(lattice) if allowed.all() and lattice.sizes[0] >= 1 else -math.inf


def _climb(fit: Fit, lattice: AnchorLattice) -> AnchorLattice:
    """The lattice moved along each coordinate, and along a few together, as long as the count rises."""
    levels, ratios = len(lattice.sizes), len(lattice.ratios)
    length = levels + ratios + len(lattice.scales)
    together, apart = np.zeros(length), np.zeros(length)
    together[:levels] = 1  # all sizes
    apart[levels : levels + ratios] = np.linspace(-1, 1, ratios) if ratios > 1 else 0  # all ratios
    # The first scale is always 1.
    directions = [together, apart, *(row for i, row in enumerate(np.eye(length)) if i != levels + ratios)]
    reached = fit(lattice)
    for step in STEPS:
        for _ in range(4):
            before = reached
            for direction in (sign * row for row in directions for sign in (step, -step)):
                moved = _move(lattice, direction)
                value = fit(moved)
                if value > reached + 1e-6:
                    lattice, reached = moved, value
            if reached < before + 1e-3:
                break
    return lattice


def _move(lattice: AnchorLattice, octaves: Vector) -> AnchorLattice:
    """Sizes, ratios and scales times powers of two; the least scale is 1."""
    levels, ratios = len(lattice.sizes), len(lattice.ratios)
    moved = np.array([*lattice.sizes, *lattice.ratios, *lattice.scales]) * 2**octaves
    sizes, shapes, scales = np.split(moved, [levels, levels + ratios])
    least = scales.min()
    return replace(
        lattice,
        sizes=tuple((sizes * least).tolist()),
        ratios=tuple(np.sort(shapes).tolist()),
        scales=tuple(np.sort(scales / least).tolist()),
    )


def _restore_what_hardly_matters(fit: Fit, lattice: AnchorLattice) -> AnchorLattice:
    """The lattice with the sizes, ratios or scales of before where those are as good."""

    def covered(lattice: AnchorLattice) -> float:
        return float((fit.iou(lattice) >= fit.foreground).mean())

    for part in ("scales", "ratios", "sizes"):
        back = replace(lattice, **{part: getattr(fit.lattice, part)})
        if fit.count(back) >= fit.count(lattice) - LITTLE and covered(back) >= covered(lattice) - LITTLE / 5:
            lattice = back
    return lattice


def _round(lattice: AnchorLattice) -> AnchorLattice:
    """Numbers that a person would write."""
    sizes = tuple(float(round(size)) if size >= 16 else round(size, 1) for size in lattice.sizes)
    ratios, scales = (tuple(float(f"{value:.2g}") for value in part) for part in (lattice.ratios, lattice.scales))
    return replace(lattice, sizes=sizes, ratios=ratios, scales=scales)


def _find_means(values: Vector, number: int) -> Vector:
    """(number,) k-means of values, ascending; it starts from quantiles."""
    means = np.quantile(values, (np.arange(number) + 0.5) / number)
    for _ in range(30):
        member = np.abs(values[:, None] - means).argmin(axis=1)
        means = np.array([values[member == i].mean() if (member == i).any() else means[i] for i in range(number)])
    return np.sort(means)
