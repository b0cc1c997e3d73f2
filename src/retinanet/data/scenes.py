"""The pictures of the demo: enamel-like shapes over stones, threads and shadows.

A scene depends on (seed, split, index, size) alone. Shapes are drawn as masks on a grid finer than the pixels; boxes,
areas and smooth edges all come from those masks.
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


def _circle(radius: float = 1.0, squeeze: float = 1.0) -> Array:
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


def _pebble(rng: Generator) -> list[Array]:
    """Not a class: the outline of the stones in the ground."""
    angle = np.arctan2(*_circle().T)
    wobble = sum(rng.normal(0, 0.2 / k) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (2, 3, 4, 5))
    return [_circle(squeeze=rng.uniform(0.55, 0.9)) * (0.85 + wobble * 0.7)[:, None]]


# Imbalanced on purpose. The first polygon of an outline is filled, the second one is a hole.
GLYPHS = (
    Glyph("disc", 0.40, (255, 101, 84), lambda rng: [_circle(squeeze=rng.uniform(0.82, 1.0))]),
    Glyph("triangle", 0.19, (255, 200, 55), lambda rng: [_spikes(3, 0.5)]),
    Glyph("ring", 0.14, (40, 200, 184), lambda rng: [_circle(), _circle(rng.uniform(0.5, 0.62))]),
    Glyph("cross", 0.11, (246, 243, 235), lambda rng: [_plus(rng.uniform(0.28, 0.36))]),
    Glyph("bar", 0.10, (86, 156, 255), lambda rng: [_bar(rng.uniform(0.32, 0.44))]),
    Glyph("star", 0.06, (236, 104, 206), lambda rng: [_spikes(5, 0.5)]),
)

# (far, near) colours of the ground: calm, so that every glyph stands out.
GROUNDS = (
    ((30, 40, 66), (66, 86, 120)),
    ((46, 34, 62), (98, 76, 112)),
    ((26, 56, 58), (72, 108, 98)),
    ((50, 44, 44), (112, 98, 86)),
    ((92, 108, 122), (150, 164, 172)),
    ((104, 112, 92), (160, 162, 134)),
)


def _draw_mask(outline: Outline, diameter: float, rng: Generator) -> Array:
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


def _windows(corner: tuple[int, int], shape: tuple[int, ...], size: tuple[int, ...]) -> tuple[Any, Any]:
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
        canvas, tile = _windows(thing.corner, thing.mask.shape, self.owner.shape)
        shown, below = thing.mask[tile], self.owner[canvas]
        total, inside = int(thing.mask.sum()), int(shown.sum())
        covered = np.bincount(below[shown] + 1, minlength=len(self.things) + 1)[1:]
        if inside < LEAST_VISIBLE * total or (covered.any() and not overlap):
            return False
        if any(v - c < LEAST_VISIBLE * t for v, c, t in zip(self.visible, covered, self.total, strict=True)):
            return False
        below[shown] = len(self.things)
        self.visible = [v - int(c) for v, c in zip(self.visible, covered, strict=True)] + [inside]
        self.total.append(total)
        self.things.append(thing)
        return True

    def box(self, index: int) -> list[float]:
        """Tight xyxy in pixels around what is visible of a thing."""
        canvas, _ = _windows(self.things[index].corner, self.things[index].mask.shape, self.owner.shape)
        seen = self.owner[canvas] == index
        rows, columns = np.flatnonzero(seen.any(1)) + canvas[0].start, np.flatnonzero(seen.any(0)) + canvas[1].start
        return [columns[0] / FINE, rows[0] / FINE, (columns[-1] + 1) / FINE, (rows[-1] + 1) / FINE]


def plan_scene(seed: int, split: str, index: int, size: tuple[int, int]) -> Scene:
    """Decide what is in a scene and where.

    Args:
        seed: of the data set, not negative.
        split: name of the split; it enters the randomness.
        index: of the scene in its split.
        size: (height, width) in pixels.
    """
    entropy = (seed, crc32(split.encode()), index)
    rng = np.random.default_rng(entropy)
    placement = _Placement(size)
    count = 0 if index % EMPTY_EVERY == EMPTY_EVERY // 2 else min(1 + int(rng.gamma(1.8, 5.5)), MOST_OBJECTS)
    typical = rng.uniform(32, 60) * (0.75 if count > 12 else 1.0)
    shares = np.array([glyph.share for glyph in GLYPHS])
    for _ in range(count):
        label = int(rng.choice(len(GLYPHS), p=shares / shares.sum()))
        diameter = float(np.clip(typical * np.exp(rng.normal(0, 0.4)), SMALLEST, min(size) / 2))
        mask = _draw_mask(GLYPHS[label].outline, diameter, rng)
        colour = np.clip(np.array(GLYPHS[label].colour) * rng.uniform(0.9, 1.06) + rng.normal(0, 9, 3), 0, 255)
        overlap = rng.random() < 0.2
        for _ in range(12):
            y, x = ((rng.uniform(0.03, 0.97) * size[i] * FINE - mask.shape[i] / 2) for i in (0, 1))
            if placement.add(Thing(label, (int(y), int(x)), mask, colour), overlap):
                break
    boxes = np.array([placement.box(i) for i in range(len(placement.things))]).reshape(-1, 4)
    return Scene(size, tuple(placement.things), boxes, np.array(placement.visible) / FINE**2, (*entropy, 1))


def paint(scene: Scene) -> Image.Image:
    """The picture of a scene."""
    rng = np.random.default_rng(scene.paint_seed)
    angle = rng.uniform(0.15, 0.35) * np.pi
    light = np.array([-np.cos(angle), -np.sin(angle)])  # (y, x) towards the light, which is at the upper left
    pixels = _paint_ground(scene.size, light, rng)
    for thing in scene.things:
        _paint_thing(pixels, thing, light)
    grain = rng.standard_normal((*scene.size, 4), dtype=np.float32)  # of a sensor: one part common to the three colours
    pixels += grain[..., :1] * 2.5 + grain[..., 1:] * 1.2
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))


def _paint_ground(size: tuple[int, int], light: Array, rng: Generator) -> Array:
    """Gradient, stains, broad shadows, threads and pebbles: (H, W, 3) float32. None of it is an object."""
    far, near = (np.array(colour, dtype=np.float32) for colour in GROUNDS[rng.integers(len(GROUNDS))])
    y, x = (grid.astype(np.float32) / max(size) for grid in np.mgrid[0 : size[0], 0 : size[1]])
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    blend = (slope - slope.min()) / np.ptp(slope) + _noise(size, 3, rng) * 0.35 + _noise(size, 24, rng) * 0.12
    beam = np.sin((slope * rng.uniform(0.6, 2.0) + _noise(size, 4, rng) * 0.12 + rng.uniform()) * 6.28)
    blend -= 0.4 * np.clip(beam * 3, 0, 1)
    pixels = far + (near - far) * blend[..., None]
    for tone, alpha in ((near * 1.25 + 12, 0.5), (far * 0.55, 0.55)):
        pixels += (tone - pixels) * (_strokes(size, rng)[..., None] * np.float32(alpha))
    for _ in range(rng.integers(0, 8)):
        mask = _draw_mask(_pebble, float(np.clip(30 * np.exp(rng.normal(0, 0.5)), 8, min(size) / 4)), rng)
        corner = [int(rng.uniform(0, 1) * size[i] * FINE - mask.shape[i] / 2) for i in (0, 1)]
        colour = (far + (near - far) * rng.uniform(0.2, 1.1)) * rng.uniform(0.85, 1.1)
        _paint_thing(pixels, Thing(-1, (corner[0], corner[1]), mask, colour), light)
    return pixels


def _noise(size: tuple[int, int], cells: int, rng: Generator) -> Array:
    """Smooth noise of about ``cells`` bumps along the long side: (H, W) roughly in [-1, 1]."""
    grid = rng.uniform(-1, 1, [max(2, round(cells * side / max(size))) + 1 for side in size]).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _strokes(size: tuple[int, int], rng: Generator) -> Array:
    """Threads and specks that mean nothing: coverage (H, W) float32 in [0, 1]."""
    span = np.array([size[1], size[0]]) * 2.0
    canvas = Image.new("L", (2 * size[1], 2 * size[0]))
    draw = ImageDraw.Draw(canvas)
    t = np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(2, 8)):
        angle, length = rng.uniform(0, 2 * np.pi), span.max() * rng.uniform(0.05, 0.5)
        along = np.array([np.cos(angle), np.sin(angle)])
        bow = along[::-1] * (1, -1) * rng.normal(0, 0.2) * t * (1 - t) * 4
        curve = rng.uniform(0, 1, 2) * span + (along * (t - 0.5) + bow) * length
        fill, width = int(rng.integers(90, 255)), int(rng.integers(1, 7))
        draw.line([(px, py) for px, py in curve.tolist()], fill=fill, width=width, joint="curve")
    for _ in range(rng.integers(10, 60)):
        (px, py), radius = rng.uniform(0, 1, 2) * span, rng.uniform(0.8, 3.5)
        draw.ellipse((px - radius, py - radius, px + radius, py + radius), fill=int(rng.integers(60, 255)))
    return np.asarray(canvas.reduce(2), dtype=np.float32) / 255


def _paint_thing(pixels: Array, thing: Thing, light: Array) -> None:
    """A shape with a soft shadow, a bevelled edge and a sheen, painted over what is there."""
    above, left = (corner % FINE for corner in thing.corner)
    height, width = thing.mask.shape
    depth = max(height, width) / FINE
    pad = 2 + int(0.14 * depth)
    below, right = -(above + height) % FINE, -(left + width) % FINE
    fine = np.pad(thing.mask, ((above, below), (left, right)))
    cells = fine.reshape(fine.shape[0] // FINE, FINE, fine.shape[1] // FINE, FINE)
    cover = np.pad(cells.mean((1, 3), dtype=np.float32), pad)
    corner = thing.corner[0] // FINE - pad, thing.corner[1] // FINE - pad

    dy, dx = np.round(-light * (1 + 0.06 * depth)).astype(int).tolist()
    canvas, tile = _windows((corner[0] + dy, corner[1] + dx), cover.shape, pixels.shape)
    pixels[canvas] *= 1 - 0.5 * _blur(cover, 0.8 + 0.035 * depth)[tile][..., None]

    down, across = np.gradient(_blur(cover, 0.5 + 0.03 * depth))
    bevel = (down * light[0] + across * light[1]) * (1.5 + 0.05 * depth)
    y, x = (np.linspace(-1, 1, side) for side in cover.shape)
    shade = 1 - 0.5 * bevel + 0.14 * (y[:, None] * light[0] + x * light[1])
    canvas, tile = _windows(corner, cover.shape, pixels.shape)
    colour = np.clip(thing.colour * shade[tile][..., None], 0, 255)
    pixels[canvas] += (colour - pixels[canvas]) * cover[tile][..., None]


def _blur(cover: Array, radius: float) -> Array:
    picture = Image.fromarray((cover * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255
