"""What is in the pictures of the demo: shapes of six classes; :mod:`retinanet.data.painting` paints them.

A scene depends on (seed, split, index, size, objects) alone. Shapes are drawn as masks on a grid finer than the pixels;
boxes, areas and smooth edges all come from those masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

Array = NDArray[Any]
Generator = np.random.Generator
Outline = Callable[[Generator], list[Array]]

FINE = 4
"""Cells of the mask grid along one pixel."""
SMALLEST = 12.0
"""Smallest diameter in pixels; the largest is half the short side of the image."""
EMPTY_EVERY = 16
"""One scene in so many shows clutter only."""
MOST_OBJECTS = 25
MOST_THINGS = 2**15 - 1
"""What the numbers of a placement's grid can tell apart."""
COVERED = 0.33
"""Share of the image that the circles around the shapes of a dense scene would cover, if none overlapped."""
LEAST_VISIBLE = 0.6
"""Share of a shape that must lie inside the image and uncovered; a shape that would leave less is not placed."""


@dataclass(frozen=True)
class Glyph:
    """One class: its name, how often it is drawn, its colour and its outline in the unit circle."""

    name: str
    share: float
    colour: tuple[int, int, int]
    outline: Outline


@dataclass(frozen=True)
class Thing:
    """A placed shape.

    Attributes:
        label: index into :data:`GLYPHS`.
        corner: (y, x) of the mask on the fine grid; negative where the shape begins outside the image.
        mask: (h, w) bool on the fine grid, cropped to the shape.
        colour: (3,) RGB in [0, 255].
    """

    label: int
    corner: tuple[int, int]
    mask: Array
    colour: Array


@dataclass(frozen=True)
class Scene:
    """What is in a picture, and everything needed to paint it.

    Attributes:
        size: (height, width) in pixels.
        things: shapes from the lowest to the topmost, each at least ``LEAST_VISIBLE`` visible.
        boxes: (M, 4) float64 xyxy in pixels, tight around the visible part, in steps of 1 / ``FINE``.
        areas: (M,) float64, visible area in square pixels.
        paint_seed: entropy of the background, the light and the grain.
    """

    size: tuple[int, int]
    things: tuple[Thing, ...]
    boxes: Array
    areas: Array
    paint_seed: tuple[int, ...]


def draw_circle(radius: float = 1.0, squeeze: float = 1.0) -> Array:
    """A polygon (72, 2) of an ellipse around the origin: x, y."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    return np.stack([np.cos(angle) * radius, np.sin(angle) * radius * squeeze], axis=1)


def _spikes(points: int, inner: float) -> Array:
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _plus(arm: float) -> Array:
    quarter = np.array([[1.0, -arm], [1.0, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])  # by 90 degrees, for rows of points
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _bar(half_width: float) -> Array:
    return np.array([[-1.0, -half_width], [1.0, -half_width], [1.0, half_width], [-1.0, half_width]])


# Imbalanced on purpose. The first polygon of an outline is filled, the second one is a hole.
GLYPHS = (
    Glyph("disc", 0.40, (255, 101, 84), lambda rng: [draw_circle(squeeze=rng.uniform(0.82, 1.0))]),
    Glyph("triangle", 0.19, (255, 200, 55), lambda rng: [_spikes(3, 0.5)]),
    Glyph("ring", 0.14, (40, 200, 184), lambda rng: [draw_circle(), draw_circle(rng.uniform(0.5, 0.62))]),
    Glyph("cross", 0.11, (246, 243, 235), lambda rng: [_plus(rng.uniform(0.28, 0.36))]),
    Glyph("bar", 0.10, (86, 156, 255), lambda rng: [_bar(rng.uniform(0.32, 0.44))]),
    Glyph("star", 0.06, (236, 104, 206), lambda rng: [_spikes(5, 0.5)]),
)


def draw_mask(outline: Outline, diameter: float, rng: Generator) -> Array:
    """The shape at a random angle as (h, w) bool on the fine grid, cropped; corners are rounded a little."""
    side = int(diameter * FINE * 1.12) + 2 * FINE
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for fill, polygon in zip((255, 0), outline(rng), strict=False):
        points = polygon @ turn.T * (diameter * FINE / 2) + side / 2
        draw.polygon([(x, y) for x, y in points.tolist()], fill=fill)
    mask = np.asarray(canvas.filter(ImageFilter.GaussianBlur(diameter * FINE * 0.03))) > 127
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def clip_window(corner: tuple[int, int], shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[Any, Any]:
    """Where a tile lies in a canvas and which part of the tile that is: two pairs of slices."""
    spans = []
    for start, length, limit in zip(corner, shape, size, strict=False):
        low = max(start, 0)
        spans.append((start, low, max(min(start + length, limit), low)))
    canvas = tuple(slice(low, high) for _, low, high in spans)
    return canvas, tuple(slice(low - start, high - start) for start, low, high in spans)


class _Placement:
    """The fine grid while it fills up: which thing owns each cell, and how much of each is still to be seen."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.owner = np.full((size[0] * FINE, size[1] * FINE), -1, dtype=np.int16)
        self.things: list[Thing] = []
        self.total: list[int] = []
        self.visible: list[int] = []

    def add(self, thing: Thing, overlap: bool) -> bool:
        """Put a thing on top if it, and all below it, stay visible enough."""
        canvas, tile = clip_window(thing.corner, thing.mask.shape, self.owner.shape)
        shown, below = thing.mask[tile], self.owner[canvas]
        total, inside = int(thing.mask.sum()), int(shown.sum())
        hidden = below[shown]
        hidden = hidden[hidden >= 0]
        if inside < LEAST_VISIBLE * total or (len(hidden) and not overlap):
            return False
        different, counts = np.unique(hidden, return_counts=True)
        left = {i: self.visible[i] - c for i, c in zip(different.tolist(), counts.tolist(), strict=True)}
        if any(seen < LEAST_VISIBLE * self.total[i] for i, seen in left.items()):
            return False
        below[shown] = len(self.things)
        for i, seen in left.items():
            self.visible[i] = seen
        self.visible.append(inside)
        self.total.append(total)
        self.things.append(thing)
        return True

    def box(self, index: int) -> list[float]:
        """Tight xyxy in pixels around what is visible of a thing."""
        canvas, _ = clip_window(self.things[index].corner, self.things[index].mask.shape, self.owner.shape)
        seen = self.owner[canvas] == index
        rows, columns = np.flatnonzero(seen.any(1)) + canvas[0].start, np.flatnonzero(seen.any(0)) + canvas[1].start
        return [columns[0] / FINE, rows[0] / FINE, (columns[-1] + 1) / FINE, (rows[-1] + 1) / FINE]


def plan_scene(seed: int, split: str, index: int, size: tuple[int, int], objects: int | None = None) -> Scene:
    """Decide what is in a scene and where.

    Args:
        seed: of the data set, not negative.
        split: name of the split; it enters the randomness.
        index: of the scene in its split.
        size: (height, width) in pixels.
        objects: shapes to place, all of about the size at which they cover ``COVERED`` of the image; a few may find no
            place. By default up to ``MOST_OBJECTS`` of any size, and none at all in one scene of ``EMPTY_EVERY``.
    """
    entropy = (seed, crc32(split.encode()), index)
    rng = np.random.default_rng(entropy)
    placement = _Placement(size)
    if objects is None:
        count = 0 if index % EMPTY_EVERY == EMPTY_EVERY // 2 else min(1 + int(rng.gamma(1.8, 5.5)), MOST_OBJECTS)
        typical, smallest, spread = rng.uniform(32, 60) * (0.75 if count > 12 else 1.0), SMALLEST, 0.4
        overlapping, attempts = 0.2, 12
    else:
        count, typical, spread = objects, dense_diameter(size, objects), 0.15
        smallest, overlapping, attempts = 0.7 * typical, 0.5, 100
    shares = np.array([glyph.share for glyph in GLYPHS])
    for _ in range(count):
        label = int(rng.choice(len(GLYPHS), p=shares / shares.sum()))
        diameter = float(np.clip(typical * np.exp(rng.normal(0, spread)), smallest, min(size) / 2))
        mask = draw_mask(GLYPHS[label].outline, diameter, rng)
        colour = np.clip(np.array(GLYPHS[label].colour) * rng.uniform(0.9, 1.06) + rng.normal(0, 9, 3), 0, 255)
        overlap = rng.random() < overlapping
        for _ in range(attempts):
            y, x = ((rng.uniform(0.03, 0.97) * size[i] * FINE - mask.shape[i] / 2) for i in (0, 1))
            if placement.add(Thing(label, (int(y), int(x)), mask, colour), overlap):
                break
    boxes = np.array([placement.box(i) for i in range(len(placement.things))]).reshape(-1, 4)
    return Scene(size, tuple(placement.things), boxes, np.array(placement.visible) / FINE**2, (*entropy, 1))


def dense_diameter(size: tuple[int, int], objects: int) -> float:
    """The typical diameter in pixels of so many shapes in a scene of size (height, width)."""
    return float(np.sqrt(COVERED * size[0] * size[1] / objects * 4 / np.pi))
