"""How one box looks on a picture: its frame, and where its tag goes.

Straight edges lie on whole pixels, so they are crisp at any size; only the rounded corners are anti-aliased.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Rect = tuple[int, int, int, int]
Dash = tuple[float, float]

log = logging.getLogger(__name__)

# Okabe and Ito's colours, told apart with every common form of colour blindness, in an order that keeps
# neighbours far apart in lightness too.
BASE_COLOURS: tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (240, 228, 66),
    (0, 114, 178),
)
SHADES = ((0, 0.0), (255, 0.5), (0, 0.4))  # (towards black or white, how far) for labels beyond the base colours

CASING = (0, 0, 0, 110)
"""The translucent dark seam around a line: it keeps the line visible on any ground."""
NO_ROOM = 0.6
"""A tag that would hide more than this share of the boxes it lies on, added up, is left out."""
MOST_TAGS = 0.12
"""Share of the picture that tags may cover together: in a crowd the first marks are named and the others bare."""

CROWD = 0.5
"""Share of the picture from which on tags, one for each mark, would hide too much: then there are none at all."""


@dataclass(frozen=True)
class Mark:
    """One box to draw."""

    box: tuple[float, float, float, float]  # xyxy in pixels of the picture that is drawn on
    colour: Colour  # RGB of the line and the tag
    captions: tuple[str, ...] = ()  # texts for the tag, the longest first; the first that fits is written, or none
    dash: Dash | None = None  # (drawn, left out) lengths in line widths; none is a solid line


def class_colour(label: int) -> Colour:
    """The colour of a class: always the same for the same label; 21 different ones."""
    base = BASE_COLOURS[label % len(BASE_COLOURS)]
    end, share = SHADES[label // len(BASE_COLOURS) % len(SHADES)]
    red, green, blue = (round(channel + (end - channel) * share) for channel in base)
    return red, green, blue


def line_width(size: tuple[int, int]) -> int:
    """Line width in pixels for a picture of size (width, height)."""
    return max(1, round(0.0032 * float(np.sqrt(size[0] * size[1]))))


def font_for(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    """The font of the tags for a picture of size (width, height): DejaVu Sans has Latin, Greek and Cyrillic."""
    return _load_font(max(10, round(0.019 * float(np.sqrt(size[0] * size[1])))))


def choose_class_name(class_names: Sequence[str], label: int) -> str:
    """The name of a class in one line, "class N" if the font lacks a letter of it; "" if there are no names."""
    name = " ".join(class_names[label].split()) if class_names else ""
    if all(map(_can_draw, name)):
        return name
    _warn_of_letters()
    return f"class {label}"


@cache
def _warn_of_letters() -> None:
    """Once, however many names and pictures there are."""
    log.warning('pictures show "class N" for classes whose names have letters that the font lacks')


@lru_cache(maxsize=8)
def _load_font(pixels: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along, which is not imported, because that is slow; without it Pillow's own."""
    try:
        path = distribution("matplotlib").locate_file("matplotlib/mpl-data/fonts/ttf/DejaVuSans.ttf")
    except PackageNotFoundError:
        return cast(ImageFont.FreeTypeFont, ImageFont.load_default(pixels))
    return ImageFont.truetype(str(path), pixels)


@cache
def _can_draw(letter: str) -> bool:
    """Whether the font has a letter, which then looks unlike a character that does not exist."""
    font = _load_font(16)
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010ffff"))


def draw_marks(picture: Image.Image, marks: Sequence[Mark]) -> None:
    """Draw marks on an RGB picture, in place: large boxes first, then all tags; earlier marks get the better places.

    In a crowd there are no tags, and the lines are thin: see ``CROWD``.
    """
    if not marks:
        return
    crowded = _is_crowd(picture, marks)
    width = min(2, line_width(picture.size)) if crowded else line_width(picture.size)
    frames = [_snap(mark.box, width, picture.size) for mark in marks]
    for i in sorted(range(len(marks)), key=lambda i: -_area(frames[i][0])):
        outer, thickness = frames[i]
        draw_frame(picture, outer, thickness, marks[i].colour, marks[i].dash)
    if not crowded:
        _draw_tags(picture, marks, [outer for outer, _ in frames])


def _is_crowd(picture: Image.Image, marks: Sequence[Mark]) -> bool:
    """Whether the shortest tags of all marks would cover too much of a picture."""
    font = font_for(picture.size)
    counts = Counter(mark.captions[-1] for mark in marks if mark.captions)
    length = sum(count * font.getlength(text) for text, count in counts.items())
    return length * font.size > CROWD * picture.width * picture.height


def _area(rect: Rect) -> int:
    return (rect[2] - rect[0]) * (rect[3] - rect[1])


def _snap(box: tuple[float, float, float, float], width: int, size: tuple[int, int]) -> tuple[Rect, int]:
    """The outer rectangle of a frame in whole pixels, and its thickness: around the object, but inside the picture."""
    x1, y1, x2, y2 = box
    width = max(1, min(width, round(0.12 * min(x2 - x1, y2 - y1))))  # small objects get thin frames
    left, top = (min(max(round(v) - width, 0), limit - 1) for v, limit in zip((x1, y1), size, strict=True))
    right, bottom = (max(min(round(v) + width, limit), 1) for v, limit in zip((x2, y2), size, strict=True))
    return (left, top, max(right, left + 1), max(bottom, top + 1)), width


def draw_frame(picture: Image.Image, outer: Rect, width: int, colour: Colour, dash: Dash | None) -> None:
    """Draw one frame in place: ``outer`` is its outer edge, ``width`` its thickness; see :class:`Mark` for ``dash``."""
    pattern = None if dash is None else (max(1, round(dash[0] * width)), max(1, round(dash[1] * width)))
    seam = max(1, round(width / 3)) if min(outer[2] - outer[0], outer[3] - outer[1]) > 4 * width + 6 else 0
    radius = min(3 * width, (outer[2] - outer[0]) // 4, (outer[3] - outer[1]) // 4)
    if seam:
        around = (outer[0] - seam, outer[1] - seam, outer[2] + seam, outer[3] + seam)
        # dashes break the seam and show as such without colour; dots need it whole to be seen on a light ground
        broken = pattern if dash is not None and dash[0] >= 3 else None
        _draw_ring(picture, around, width + 2 * seam, radius + seam, CASING, broken)
    _draw_ring(picture, outer, width, radius, (*colour, 255), pattern)


def _draw_ring(
    picture: Image.Image, outer: Rect, width: int, radius: int, colour: tuple[int, ...], dash: tuple[int, int] | None
) -> None:
    """A rounded rectangular frame: four straight sides, dashed or not, and four corner tiles."""
    left, top, right, bottom = outer
    draw = ImageDraw.Draw(picture, "RGBA")
    width = min(width, right - left, bottom - top)
    corner = max(radius, width) if min(right - left, bottom - top) >= 2 * max(radius, width) else 0
    inset = corner or width
    for start, end in _dashes(left + corner, right - corner, dash):
        for y in {top, bottom - width}:
            draw.rectangle((start, y, end - 1, y + width - 1), fill=colour)
    for start, end in _dashes(top + inset, bottom - inset, dash):
        for x in {left, right - width}:
            draw.rectangle((x, start, x + width - 1, end - 1), fill=colour)
    if corner:
        tile, right, bottom = _corner(corner, radius, width, colour[3]), right - corner, bottom - corner
        for turns, place in enumerate(((left, top), (right, top), (right, bottom), (left, bottom))):
            picture.paste(colour[:3], place, tile.rotate(-90 * turns))


def _dashes(start: int, end: int, dash: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Pieces of a side: it begins and ends with a gap, since the corners are drawn."""
    if end <= start:
        return []
    if dash is None:
        return [(start, end)]
    drawn, gap = dash
    count = round((end - start - gap) / (drawn + gap))
    if count < 1:
        return []
    stretch = (end - start) / (count * (drawn + gap) + gap)
    edges = [start + stretch * (gap + i * (drawn + gap)) for i in range(count)]
    return [(round(edge), max(round(edge + stretch * drawn), round(edge) + 1)) for edge in edges]


@lru_cache(maxsize=64)
def _corner(side: int, radius: int, width: int, alpha: int) -> Image.Image:
    """Coverage of the upper left corner of a frame, (side, side), from a drawing eight times as large."""
    fine = 8
    tile = Image.new("L", (2 * side * fine, 2 * side * fine))
    draw = ImageDraw.Draw(tile)
    end = 4 * side * fine
    draw.rounded_rectangle((0, 0, end, end), radius * fine, fill=alpha)
    inner = max(radius - width, 0)
    draw.rounded_rectangle((width * fine, width * fine, end, end), inner * fine, fill=0)
    return tile.crop((0, 0, side * fine, side * fine)).reduce(fine)


def _draw_tags(picture: Image.Image, marks: Sequence[Mark], frames: list[Rect]) -> None:
    """Write the captions where they hide least; one that would hide another tag or a small object is left out."""
    draw = ImageDraw.Draw(picture, "RGBA")
    font = font_for(picture.size)
    _, top, _, descent = (round(edge) for edge in font.getbbox("Ag", anchor="ls"))  # of capital letters and of tails
    ascent = -top
    pad = max(2, round(0.22 * (ascent + descent)))
    height = ascent + descent + pad
    boxes = np.array(frames, dtype=np.float64)
    taken: list[Rect] = []
    for i, mark in enumerate(marks):
        if sum(map(_area, taken)) > MOST_TAGS * picture.width * picture.height:
            break
        for text in mark.captions:
            rect = _place(i, (round(font.getlength(text)) + 2 * pad, height), picture.size, boxes, taken)
            if rect is None:
                continue
            taken.append(rect)
            left, top, right, bottom = rect
            draw.rectangle((left, top, right - 1, bottom - 1), fill=mark.colour)
            draw.text((left + pad, top + pad / 2 + ascent), text, fill=ink_on(mark.colour), font=font, anchor="ls")
            break


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever reads better on a colour (WCAG relative luminance)."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (16, 16, 16) if luminance > 0.18 else (255, 255, 255)


def _place(
    own: int, size: tuple[int, int], limit: tuple[int, int], boxes: np.ndarray, taken: Sequence[Rect]
) -> Rect | None:
    """The best free place for a tag of ``size`` at frame ``own`` of (n, 4) ``boxes``, or None."""
    width, height = size
    if width > limit[0] or height > limit[1]:
        return None
    left, top, right, bottom = (int(edge) for edge in boxes[own])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best, best_cost = None, NO_ROOM
    for x, y, cost in (  # what is held against a place, beside what it hides
        (left, top - height, 0.0),
        (right - width, top - height, 0.04),
        (left, bottom, 0.06),
        (right - width, bottom, 0.08),
        (right, top, 0.10),
        (left - width, top, 0.12),
        (left, top, 0.10),
        (left, bottom - height, 0.12),
    ):
        x = min(max(x, 0), limit[0] - width)
        rect = (x, y, x + width, y + height)
        if not 0 <= y <= limit[1] - height or (taken and _overlap(rect, np.array(taken)).any()):
            continue
        cost += float((_overlap(rect, boxes) / areas).sum())
        if cost < best_cost:
            best, best_cost = rect, cost
    return best


def _overlap(rect: Rect, others: np.ndarray) -> np.ndarray:
    """Common area of one rectangle and (n, 4) others: (n,)."""
    sides = np.minimum(rect[2:], others[:, 2:]) - np.maximum(rect[:2], others[:, :2])
    return np.clip(sides, 0, None).prod(axis=1)
