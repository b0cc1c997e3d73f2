"""The anchors: not a list of boxes but a lattice that can compute any of them.

Strides, sizes, ratios and scales describe every anchor of every image. A box is computed for an index when somebody
needs it, so no (A, 4) tensor over an image exists outside the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from retinanet.errors import UserError

Grids = Sequence[tuple[int, int]]
MOST_ANCHORS = 1000  # of a cell: a model file must not make the heads fill the memory


@dataclass(frozen=True)
class LatticeCompat:
    """Where the anchors of other code bases depart from ours; for their weights only. The defaults change nothing.

    Args:
        rounding: ``corners`` cuts sides * scales to whole pixels and rounds the corners of the templates, as
            torchvision does; ``cell`` rounds the sides of a template as large as a cell before it is scaled up, as
            Detectron does.
        inclusive: the right and bottom edges name pixels that belong to the anchor, so that every side is a pixel
            longer than sizes, ratios and scales say, as in odtk.
        floor_strides: centres lie ``side of the input // side of the grid`` apart, not ``strides``, as in torchvision.
            Where the input is no multiple of the coarsest stride, the anchors of P6 and P7 drift by up to 84 pixels,
            and with them the detections of an image depend on how its batch was padded.
        spacing: pixels (down, across) between the centres of each level, settled by :meth:`AnchorLattice.over`; not an
            option.
    """

    rounding: Literal["none", "corners", "cell"] = "none"
    inclusive: bool = False
    floor_strides: bool = False
    spacing: tuple[tuple[int, int], ...] = field(default=(), metadata={"settled": True})

    def __post_init__(self) -> None:
        if self.rounding not in ("none", "corners", "cell"):
            raise UserError(f"rounding of anchors is none, corners or cell, got {self.rounding!r}")


@dataclass(frozen=True)
class AnchorLattice:
    """Anchors at every cell of every level (Lin et al., section 4, "Anchors").

    A flat index counts levels from fine to coarse, then rows, columns and the A templates of a cell, as the channels
    of the heads do. Template a = ratio index * len(scales) + scale index.

    Args:
        strides: pixels between two cells of a level, fine to coarse.
        sizes: side of the square template of scale 1, a level each, in pixels.
        ratios: height / width; the area stays that of the square.
        scales: factors on ``sizes``.
        offset: where in its cell an anchor is centred: 0.5 is the middle, 0 the top left corner.
        compat: switches for the weights of other code bases.
    """

    strides: tuple[int, ...] = (8, 16, 32, 64, 128)
    sizes: tuple[float, ...] = (32, 64, 128, 256, 512)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scales: tuple[float, ...] = (2 ** (0 / 3), 2 ** (1 / 3), 2 ** (2 / 3))
    offset: float = 0.5
    compat: LatticeCompat = field(default_factory=LatticeCompat)

    def __post_init__(self) -> None:
        for name in ("strides", "sizes", "ratios", "scales"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if not values or not all(value > 0 for value in values):
                raise UserError(f"anchor {name} must be positive numbers and at least one, got {values}")
        if len(self.sizes) != len(self.strides):
            raise UserError(
                f"anchors need one size per level: {len(self.strides)} strides {self.strides}, "
                f"but {len(self.sizes)} sizes {self.sizes}"
            )
        if self.num_anchors > MOST_ANCHORS:
            raise UserError(f"a cell has at most {MOST_ANCHORS} anchors (ratios * scales), got {self.num_anchors}")
        if self.compat.spacing and len(self.compat.spacing) != len(self.strides):
            raise UserError(f"anchors need one spacing per level, {len(self.strides)}, got {self.compat.spacing}")

    @property
    def num_anchors(self) -> int:
        """A, templates per cell."""
        return len(self.ratios) * len(self.scales)

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.strides)

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """The L grids (H_l, W_l) over an input of this size: every halving rounds up."""
        return tuple((-(-height // stride), -(-width // stride)) for stride in self.strides)

    def over(self, height: int, width: int) -> AnchorLattice:
        """The lattice over an input of this size: itself, unless ``compat.floor_strides`` have to be settled."""
        if not self.compat.floor_strides:
            return self
        spacing = tuple((height // rows, width // columns) for rows, columns in self.grids(height, width))
        return replace(self, compat=replace(self.compat, floor_strides=False, spacing=spacing))

    @property
    def steps(self) -> tuple[tuple[int, int], ...]:
        """Pixels (down, across) between the centres of each level."""
        assert not self.compat.floor_strides, "how far apart they lie depends on the input: ask over(height, width)"
        return self.compat.spacing or tuple((stride, stride) for stride in self.strides)

    def count(self, grids: Grids) -> int:
        """How many anchors lie over these grids."""
        return sum(rows * columns for rows, columns in grids) * self.num_anchors

    def templates(self, device: torch.device | str = "cpu") -> Tensor:
        """(L, A, 4) float32 xyxy, the anchors of a cell whose centre is the origin."""
        return _templates(self, str(device))

    def boxes(self, index: Tensor, grids: Grids) -> Tensor:
        """The anchors at flat indices.

        Args:
            index: (n,) int64.
            grids: L grids (H_l, W_l).

        Returns:
            (n, 4) float32 xyxy.
        """
        return self.boxes_at(*self.locate(index, grids))

    def boxes_at(self, level: Tensor, y: Tensor, x: Tensor, a: Tensor) -> Tensor:
        """The anchors at lattice points: four (n,) int64 tensors -> (n, 4) float32 xyxy."""
        # index_select, here and below, because it is several times faster than indexing and the matcher asks for many.
        step = torch.tensor(self.steps, dtype=torch.float32, device=level.device).flip(1).index_select(0, level)
        centre = torch.stack([x, y], dim=1).float().add_(self.offset) * step
        template = self.templates(level.device).flatten(0, 1).index_select(0, level * self.num_anchors + a)
        return torch.cat([centre, centre], dim=1).add_(template)

    def locate(self, index: Tensor, grids: Grids) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Flat indices (n,) -> level, y, x, a, each (n,) int64."""
        starts, columns = self._layout(grids, index.device)
        level = torch.bucketize(index, starts[1:], right=True)
        cell, a = _divmod(index - starts.index_select(0, level), self.num_anchors)
        y, x = _divmod(cell, columns.index_select(0, level))
        return level, y, x, a

    def index(self, level: Tensor, y: Tensor, x: Tensor, a: Tensor, grids: Grids) -> Tensor:
        """The inverse of :meth:`locate`: lattice points -> flat indices (n,) int64."""
        starts, columns = self._layout(grids, level.device)
        cell = y * columns.index_select(0, level) + x
        return starts.index_select(0, level) + cell * self.num_anchors + a

    def _layout(self, grids: Grids, device: torch.device) -> tuple[Tensor, Tensor]:
        """First flat index of each level, and columns of each level, both (L,) int64."""
        sizes = torch.tensor([rows * columns for rows, columns in grids], device=device) * self.num_anchors
        return sizes.cumsum(0) - sizes, torch.tensor([columns for _, columns in grids], device=device)


def _divmod(value: Tensor, divisor: Tensor | int) -> tuple[Tensor, Tensor]:
    quotient = torch.div(value, divisor, rounding_mode="floor")
    return quotient, value - quotient * divisor


@lru_cache(maxsize=32)
def _templates(lattice: AnchorLattice, device: str) -> Tensor:
    sizes = torch.tensor(lattice.sizes, dtype=torch.float64)[:, None, None]
    ratios = torch.tensor(lattice.ratios, dtype=torch.float64)[None, :, None]
    scales = torch.tensor(lattice.scales, dtype=torch.float64)[None, None, :]
    if lattice.compat.rounding == "cell":
        cell = torch.tensor(lattice.strides, dtype=torch.float64)[:, None, None]
        width = (cell / ratios.sqrt()).round()
        half_width, half_height = (side * sizes / cell * scales / 2 for side in (width, (width * ratios).round()))
    else:
        side = (sizes * scales).floor() if lattice.compat.rounding == "corners" else sizes * scales
        half_width, half_height = side / ratios.sqrt() / 2, side * ratios.sqrt() / 2
    corners = torch.stack([-half_width, -half_height, half_width, half_height], dim=-1).flatten(1, 2)  # (L, A, 4)
    if lattice.compat.rounding == "corners":
        corners = corners.round()
    if lattice.compat.inclusive:
        corners[..., 2:] += 1
    return corners.float().to(device)
