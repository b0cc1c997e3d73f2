"""The pictures of the scenes: shapes like enamel, with shadow, bevel and sheen, on a ground of stones and threads."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from retinanet.data.scenes import FINE, Array, Generator, Scene, Thing, clip_window, draw_circle, draw_mask

# (far, near) colours of the ground: calm, so that every glyph stands out.
GROUNDS = (
    ((30, 40, 66), (66, 86, 120)),
    ((46, 34, 62), (98, 76, 112)),
    ((26, 56, 58), (72, 108, 98)),
    ((50, 44, 44), (112, 98, 86)),
    ((92, 108, 122), (150, 164, 172)),
    ((104, 112, 92), (160, 162, 134)),
)


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
        mask = draw_mask(_pebble, float(np.clip(30 * np.exp(rng.normal(0, 0.5)), 8, min(size) / 4)), rng)
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
    canvas, tile = clip_window((corner[0] + dy, corner[1] + dx), cover.shape, pixels.shape)
    pixels[canvas] *= 1 - 0.5 * _blur(cover, 0.8 + 0.035 * depth)[tile][..., None]

    down, across = np.gradient(_blur(cover, 0.5 + 0.03 * depth))
    bevel = (down * light[0] + across * light[1]) * (1.5 + 0.05 * depth)
    y, x = (np.linspace(-1, 1, side) for side in cover.shape)
    shade = 1 - 0.5 * bevel + 0.14 * (y[:, None] * light[0] + x * light[1])
    canvas, tile = clip_window(corner, cover.shape, pixels.shape)
    colour = np.clip(thing.colour * shade[tile][..., None], 0, 255)
    pixels[canvas] += (colour - pixels[canvas]) * cover[tile][..., None]


def _blur(cover: Array, radius: float) -> Array:
    picture = Image.fromarray((cover * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float32) / 255


def _pebble(rng: Generator) -> list[Array]:
    """Not a class: the outline of the stones in the ground."""
    angle = np.arctan2(*draw_circle().T)
    wobble = sum(rng.normal(0, 0.2 / k) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (2, 3, 4, 5))
    return [draw_circle(squeeze=rng.uniform(0.55, 0.9)) * (0.85 + wobble * 0.7)[:, None]]
