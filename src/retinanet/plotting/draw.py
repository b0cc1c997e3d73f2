"""Boxes on pictures: what was found, what is annotated, and how the two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from retinanet.errors import UserError
from retinanet.plotting.marks import (
    Colour,
    Mark,
    Rect,
    choose_class_name,
    class_colour,
    draw_frame,
    draw_marks,
    font_for,
    line_width,
)

Drawable = Image.Image | NDArray[np.uint8] | Any  # a picture, an array (H, W, 3) or a tensor (3, H, W)
DrawLine = Callable[[Image.Image, Rect, int], None]  # draws a frame on a picture: its outer edge, its line width

STRIP, PAPER = (38, 40, 46), (240, 240, 240)  # ground and letters below a picture
# Told apart by colour, by lightness and by line: right, wrong, overlooked, not judged.
Style = tuple[Colour, tuple[float, float] | None]
HIT: Style = ((86, 180, 233), None)
FALSE: Style = ((213, 94, 0), (4, 4))
MISSED: Style = ((240, 228, 66), (1.5, 2))
IGNORED: Style = ((160, 160, 160), (1, 3))


def draw_boxes(
    image: Drawable,
    boxes: Any,
    labels: Any = None,
    *,
    class_names: Sequence[str] = (),
    scores: Any = None,
    tracks: Sequence[int] | None = None,
    zoom: int = 1,
) -> Image.Image:
    """Draw boxes, a colour per class, on a copy of an image.

    Args:
        image: (3, H, W) uint8 RGB tensor, (H, W, 3) uint8 RGB array, or a picture of Pillow.
        boxes: (M, 4) xyxy in pixels of the image, tensor or array, as are labels and scores.
        labels: (M,) int64; they choose the colours.
        class_names: K names for the tags; without them no class is written.
        scores: (M,) in [0, 1], written on the tags.
        tracks: M numbers of objects followed through a video, written behind the class where they are 0 or more.
        zoom: enlarge the picture this many times first, so that lines and tags on a small image are fine.

    Returns:
        An RGB picture of zoom times the size.

    Raises:
        UserError: if the image is none of these, or the arguments do not fit together.
    """
    picture, count = to_picture(image, zoom), len(boxes)
    for what, given in (("labels", labels), ("scores", scores), ("tracks", tracks)):
        if given is not None and len(given) != count:
            raise UserError(f"got {count} boxes to draw but {len(given)} {what}; there must be one for each box")
    numbers = [0] * count if labels is None else labels.tolist()
    if class_names and numbers and not 0 <= min(numbers) <= max(numbers) < len(class_names):
        raise UserError(
            f"labels go from {min(numbers)} to {max(numbers)}, but there are {len(class_names)} class names"
        )
    names = () if labels is None else class_names
    captions = _write_captions(numbers, names, None if scores is None else scores.tolist(), tracks)
    draw_marks(picture, _make_marks(boxes, zoom, [(class_colour(number), None) for number in numbers], captions))
    return picture


def draw_comparison(
    image: Drawable,
    detections: Any,
    target: Any,
    hits: NDArray[np.int64],
    false: NDArray[np.int64],
    missed: NDArray[np.int64],
    *,
    zoom: int = 1,
) -> Image.Image:
    """Draw detections over annotations: hits solid, false alarms dashed, missed objects dotted, and a legend below.

    Which they are, ``retinanet.evaluation.matching`` says. Detections that are neither, those in ignore regions, are
    not drawn.

    Args:
        image: as for :func:`draw_boxes`.
        detections: what was found, ``Detections``, which can draw themselves and so are a layer above.
        target: what is there, a ``Target``.
        hits: rows of the detections that found an object.
        false: rows of the detections that found none.
        missed: rows of the objects that no detection found.
        zoom: see :func:`draw_boxes`.

    Returns:
        An RGB picture of zoom times the size, with a legend as a strip below; see :func:`add_legend`.
    """
    boxes, detected, names = np.asarray(target.boxes), np.asarray(detections.boxes), detections.class_names
    ignored = boxes[np.asarray(target.ignore)]
    captions = _write_captions(detections.labels.tolist(), names, detections.scores.tolist())
    picture = to_picture(image, zoom)
    marks = [
        *_make_marks(detected[false], zoom, repeat(FALSE), [captions[row] for row in false]),
        *_make_marks(boxes[missed], zoom, repeat(MISSED), _write_captions(target.labels[missed].tolist(), names)),
        *_make_marks(detected[hits], zoom, repeat(HIT), [captions[row] for row in hits]),
        *_make_marks(ignored, zoom, repeat(IGNORED)),
    ]
    draw_marks(picture, marks)
    entries = [("found", hits, HIT), ("false", false, FALSE), ("missed", missed, MISSED), ("ignored", ignored, IGNORED)]
    lines = [
        (f"{len(rows)} {what}", partial(draw_frame, colour=colour, dash=dash))
        for what, rows, (colour, dash) in entries
        if len(rows) or what != "ignored"
    ]
    return add_legend(picture, lines, picture.size)


def add_legend(picture: Image.Image, entries: Sequence[tuple[str, DrawLine]], size: tuple[int, int]) -> Image.Image:
    """A picture with a strip below that says what each line means, in as many rows as it takes.

    Args:
        picture: one narrower than ten letters gets no strip.
        entries: (words, how the line is drawn).
        size: (width, height) of the picture for which the letters and lines would be right.
    """
    font, line = font_for(size), line_width(size)
    em = round(font.getlength("M"))
    if picture.width < 10 * em:
        return picture
    places: list[tuple[int, int]] = []
    x, row = em, 0
    for words, _ in entries:
        length = 5 * em + round(font.getlength(words))
        if x > em and x + length > picture.width:
            x, row = em, row + 1
        places.append((x, row))
        x += length

    height = 2 * em + 4 * line
    strip = Image.new("RGB", (picture.width, height * (row + 1)), STRIP)
    draw = ImageDraw.Draw(strip)
    for (x, row), (words, draw_line) in zip(places, entries, strict=True):
        middle, half = height * row + height // 2, em // 2 + line
        draw_line(strip, (x, middle - half, x + 5 * em // 2, middle + half), line)
        draw.text((x + 3 * em, middle), words, fill=PAPER, font=font, anchor="lm")
    return contact_sheet([picture, strip], 1, width=picture.width, gap=0)


def contact_sheet(images: Sequence[Image.Image], columns: int = 3, *, width: int = 1600, gap: int = 8) -> Image.Image:
    """Pictures side by side, row by row, on white.

    Args:
        images: at least one.
        columns: pictures in a row.
        width: of the sheet in pixels, at most; pictures too wide for their column are made smaller, none larger.
        gap: pixels between two pictures.
    """
    if not images or columns < 1:
        raise UserError(f"a contact sheet needs at least one picture and one column, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    column = max(1, min((width - gap * (columns - 1)) // columns, max(image.width for image in images)))
    fitted = [image.convert("RGB") for image in images]
    for image in fitted:
        image.thumbnail((column, image.height), Image.Resampling.LANCZOS)
    rows = [fitted[i : i + columns] for i in range(0, len(fitted), columns)]
    heights = [max(image.height for image in row) for row in rows]
    size = (columns * (column + gap) - gap, sum(heights) + gap * (len(rows) - 1))
    sheet = Image.new("RGB", size, (255, 255, 255))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, image in enumerate(row):
            left = i * (column + gap)
            sheet.paste(image, (left + (column - image.width) // 2, top))
        top += height + gap
    return sheet


def cut_out(picture: Image.Image, region: Rect, size: tuple[int, int]) -> Image.Image:
    """A region of a picture, enlarged or reduced to ``size`` (width, height); what lies outside the picture is dark.

    Args:
        picture: RGB.
        region: xyxy in its pixels, also beyond its edges.
        size: of the same shape as the region.
    """
    left, top, right, bottom = region
    cut = Image.new("RGB", (right - left, bottom - top), STRIP)
    cut.paste(picture, (-left, -top))
    return cut.resize(size, Image.Resampling.BICUBIC)


def to_picture(image: Drawable, zoom: int = 1) -> Image.Image:
    """An RGB copy of a (3, H, W) uint8 tensor, a (H, W, 3) uint8 array or a picture, enlarged ``zoom`` times."""
    if zoom < 1:
        raise UserError(f"zoom is a whole number from 1 up, got {zoom}")
    if isinstance(image, Image.Image):
        picture = image.convert("RGB") if image.mode != "RGB" else image.copy()
    else:
        planes = not isinstance(image, np.ndarray)
        pixels = image if isinstance(image, np.ndarray) else np.asarray(image.detach().cpu())
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0 if planes else 2] != 3:
            expected = "a (3, H, W) uint8 RGB tensor or a (H, W, 3) uint8 RGB array"
            raise UserError(f"an image to draw on is {expected}, got {tuple(image.shape)} {image.dtype}")
        picture = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0) if planes else pixels))
    if zoom > 1:
        picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS)
    return picture


def _write_captions(
    labels: Sequence[int],
    class_names: Sequence[str],
    scores: Sequence[float] | None = None,
    tracks: Sequence[int] | None = None,
) -> list[tuple[str, ...]]:
    """For each of n labels the texts for a tag, the longest first: name and score, name; those that are not empty."""
    names = [choose_class_name(class_names, label) for label in labels]
    if tracks is not None:
        names = [f"{name} #{track}".strip() if track >= 0 else name for name, track in zip(names, tracks, strict=True)]
    if scores is None:
        return [(name,) if name else () for name in names]
    pairs = zip(names, scores, strict=True)
    return [(f"{name} {score:.2f}", name) if name else (f"{score:.2f}",) for name, score in pairs]


def _make_marks(
    boxes: Any, zoom: int, styles: Iterable[Style], captions: Iterable[tuple[str, ...]] = repeat(())
) -> list[Mark]:
    """A mark for each of the boxes (n, 4), enlarged ``zoom`` times."""
    rows = zip((zoom * np.asarray(boxes.tolist()).reshape(-1, 4)).tolist(), styles, captions, strict=False)
    return [Mark(tuple(box), colour, texts, dash) for box, (colour, dash), texts in rows]
