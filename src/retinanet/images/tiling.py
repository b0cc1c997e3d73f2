"""Where the windows of a large image lie: one rule for training, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess

SMALLEST_TILE = 32
OVERLAP = 128  # where nothing is known of the objects
Size = tuple[int, int]  # (height, width)
Window = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels of the image, the last two exclusive


@dataclass(frozen=True)
class Tiling:
    """How images are cut into windows.

    Attributes:
        tile: side of the square windows, in pixels of the image.
        overlap: pixels that neighbouring windows share at least.
    """

    tile: int = 1024
    overlap: int = OVERLAP

    def __post_init__(self) -> None:
        check_sides((self.tile, self.tile), self.overlap)

    def windows(self, size: Size) -> list[Window]:
        """The windows of an image, row by row; one that fits into a tile has a single window."""
        return list_windows(size, (self.tile, self.tile), self.overlap)

    def cuts(self, size: Size) -> bool:
        """Whether an image of this size has more than one window."""
        return max(size) > self.tile


def check_sides(sides: tuple[int, ...], overlap: int) -> None:
    """Check the (height, width) of windows and what neighbours share.

    Raises:
        UserError: they make no windows.
    """
    if len(sides) != 2 or min(sides) < SMALLEST_TILE:
        shown = sides[0] if len(set(sides)) == 1 else sides
        raise UserError(f"tile is at least {SMALLEST_TILE} pixels, one number or height and width; got {shown}")
    if not 0 <= overlap < min(sides):
        raise UserError(f"overlap is at least 0 and smaller than the tile ({min(sides)} pixels), got {overlap}")


def choose_tiling(
    known: Tiling | None, tile: int | None, overlap: int | None, default: Callable[[int], int]
) -> Tiling | None:
    """The tiling that is meant by two options of which either may be left out.

    Args:
        known: what the model says.
        tile: None is the model's; 0 is none: images are shown to the network whole.
        overlap: None is the model's, and ``default`` where the model has none or another tile.
        default: the overlap for a tile.

    Raises:
        UserError: there is an overlap without a tile, or one of them is out of its range.
    """
    if tile is None and known is not None:
        return known if overlap is None else replace(known, overlap=overlap)
    if not tile:
        if overlap is not None:
            raise UserError("overlap is for images that are cut into windows; give tile too, above 0")
        return None
    if overlap is None:
        overlap = known.overlap if known is not None and known.tile == tile else default(max(tile, SMALLEST_TILE))
    return Tiling(tile, overlap)


def usual_overlap(tile: int) -> int:
    """The overlap of windows where nothing is known of the objects: less than half the tile."""
    return min(OVERLAP, (tile - 1) // 2)


def list_windows(size: Size, sides: Size, overlap: int) -> list[Window]:
    """The windows that cover an image, of one size, row by row; none is larger than the image."""
    (height, width), (tall, wide) = size, (min(sides[0], size[0]), min(sides[1], size[1]))
    corners = product(find_starts(height, tall, overlap), find_starts(width, wide, overlap))
    return [(y, x, y + tall, x + wide) for y, x in corners]


def find_starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along one side: regularly, but the last ends with the image."""
    last, step = length - window, max(1, window - overlap)
    return [min(start, last) for start in range(0, last + step, step)]


def fix_scale(rule: Preprocess, window: Size, scale: float) -> Preprocess:
    """The resize rule for windows of a size: of one magnification, the aspect kept.

    Args:
        rule: of the model.
        window: (height, width).
        scale: pixels of the network's input per pixel of the image.
    """
    short = max(1, round(min(window) * scale))
    return replace(rule, short=short, long=-(-short * max(window) // min(window)))  # long never limits
