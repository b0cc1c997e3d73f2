"""Boxes on pictures: what was found, what is annotated, and how the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from retinanet.errors import UserError
from retinanet.plotting.marks import Colour, Mark, class_colour, draw_frame, draw_marks, font_for, line_width
from retinanet.types import Detections, Target

Drawable = Image.Image | NDArray[np.uint8] | Any  # a picture, an array (H, W, 3) or a tensor (3, H, W)

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
    zoom: int = 1,
) -> Image.Image:
    """Draw boxes, a colour per class, on a copy of an image.

    Args:
        image: (3, H, W) uint8 RGB tensor, (H, W, 3) uint8 RGB array, or a picture of Pillow.
        boxes: (M, 4) xyxy in pixels of the image, tensor or array, as are labels and scores.
        labels: (M,) int64; they choose the colours.
        class_names: K names for the tags; without them no class is written.
        scores: (M,) in [0, 1], written on the tags.
        zoom: enlarge the picture this many times first, so that lines and tags on a small image are fine.

    Returns:
        An RGB picture of zoom times the size.

    Raises:
        UserError: if the image is none of these, or the arguments do not fit together.
    """
    picture = to_picture(image, zoom)
    draw_marks(picture, _class_marks(boxes, labels, class_names, scores, zoom))
    return picture


def draw_detections(image: Drawable, detections: Detections, *, score: float = 0.3, zoom: int = 1) -> Image.Image:
    """Draw the detections whose score is at least ``score``; see :func:`draw_boxes`."""
    shown = detections.above(score)
    return draw_boxes(image, shown.boxes, shown.labels, class_names=shown.class_names, scores=shown.scores, zoom=zoom)


def draw_target(image: Drawable, target: Target, class_names: Sequence[str], *, zoom: int = 1) -> Image.Image:
    """Draw annotated boxes; ignore regions are dotted and grey. See :func:`draw_boxes`."""
    known = target.select(~target.ignore)
    picture = to_picture(image, zoom)
    ignored = _marks(target.boxes[target.ignore], zoom, IGNORED)
    draw_marks(picture, [*_class_marks(known.boxes, known.labels, class_names, None, zoom), *ignored])
    return picture


def draw_comparison(
    image: Drawable,
    detections: Detections,
    target: Target,
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
        detections: what was found.
        target: what is there.
        hits: rows of the detections that found an object.
        false: rows of the detections that found none.
        missed: rows of the objects that no detection found.
        zoom: see :func:`draw_boxes`.

    Returns:
        An RGB picture of zoom times the size; one wide enough for a legend has it as a strip below.
    """
    boxes, found = np.asarray(target.boxes), np.asarray(detections.boxes)
    labels, ignored = np.asarray(target.labels), boxes[np.asarray(target.ignore)]
    captions = [_captions(name, s) for name, s in zip(detections.names, detections.scores.tolist(), strict=True)]
    picture = to_picture(image, zoom)
    marks = [
        *_marks(found[false], zoom, FALSE, [captions[i] for i in false]),
        *_marks(boxes[missed], zoom, MISSED, [(detections.class_names[label],) for label in labels[missed]]),
        *_marks(found[hits], zoom, HIT, [captions[i] for i in hits]),
        *_marks(ignored, zoom, IGNORED),
    ]
    draw_marks(picture, marks)
    entries = [("found", len(hits), HIT), ("false", len(false), FALSE), ("missed", len(missed), MISSED)]
    if len(ignored):
        entries.append(("ignored", len(ignored), IGNORED))
    return _with_legend(picture, entries)


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
    fitted = [_fit(image.convert("RGB"), column) for image in images]
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


def to_picture(image: Drawable, zoom: int = 1) -> Image.Image:
    """An RGB copy of a (3, H, W) uint8 tensor, a (H, W, 3) uint8 array or a picture, enlarged ``zoom`` times."""
    if zoom < 1:
        raise UserError(f"zoom is a whole number from 1 up, got {zoom}")
    if isinstance(image, Image.Image):
        picture = image.convert("RGB") if image.mode != "RGB" else image.copy()
    else:
        picture = Image.fromarray(_pixels(image))
    return (
        picture
        if zoom == 1
        else picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.LANCZOS)
    )


def _pixels(image: Any) -> NDArray[np.uint8]:
    """(H, W, 3), contiguous, of such an array or of a tensor (3, H, W)."""
    planes = not isinstance(image, np.ndarray)
    pixels = np.asarray(image.detach().cpu()) if planes else image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0 if planes else 2] != 3:
        expected = "a (3, H, W) uint8 RGB tensor or a (H, W, 3) uint8 RGB array"
        raise UserError(f"an image to draw on is {expected}, got {tuple(image.shape)} {image.dtype}")
    return np.ascontiguousarray(pixels.transpose(1, 2, 0) if planes else pixels)


def _fit(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def _corners(boxes: Any, zoom: int) -> list[tuple[float, float, float, float]]:
    return [(x1 * zoom, y1 * zoom, x2 * zoom, y2 * zoom) for x1, y1, x2, y2 in boxes.tolist()]


def _captions(name: str, score: float | None) -> tuple[str, ...]:
    """Texts for a tag, the longest first."""
    name = " ".join(name.split())
    texts = [name] if score is None else [f"{name} {score:.2f}".strip(), name]
    return tuple(text for text in texts if text)


def _class_marks(boxes: Any, labels: Any, class_names: Sequence[str], scores: Any, zoom: int) -> list[Mark]:
    count = len(boxes)
    for what, given in (("labels", labels), ("scores", scores)):
        if given is not None and len(given) != count:
            raise UserError(f"got {count} boxes to draw but {len(given)} {what}; there must be one for each box")
    numbers = [0] * count if labels is None else labels.tolist()
    if class_names and numbers and not 0 <= min(numbers) <= max(numbers) < len(class_names):
        raise UserError(
            f"labels go from {min(numbers)} to {max(numbers)}, but there are {len(class_names)} class names"
        )
    names = [class_names[n] for n in numbers] if class_names and labels is not None else [""] * count
    values = [None] * count if scores is None else scores.tolist()
    rows = zip(_corners(boxes, zoom), numbers, names, values, strict=True)
    return [Mark(box, class_colour(n), _captions(name, value)) for box, n, name, value in rows]


def _marks(boxes: Any, zoom: int, style: Style, captions: Sequence[tuple[str, ...]] | None = None) -> list[Mark]:
    texts = [()] * len(boxes) if captions is None else captions
    return [Mark(box, style[0], text, style[1]) for box, text in zip(_corners(boxes, zoom), texts, strict=True)]


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, int, Style]]) -> Image.Image:
    """The picture with a strip below that says what each line means and how many there are."""
    font = font_for(picture.size)
    width = line_width(picture.size)
    em = round(font.getlength("M"))
    texts = [f"{count} {what}" for what, count, _ in entries]
    if sum(round(font.getlength(text)) + 5 * em for text in texts) > picture.width:
        return picture
    strip = Image.new("RGB", (picture.width, 2 * em + 4 * width), (38, 40, 46))
    draw = ImageDraw.Draw(strip)
    x, middle = em, strip.height // 2
    for text, (_, _, (colour, dash)) in zip(texts, entries, strict=True):
        half = em // 2 + width
        draw_frame(strip, (x, middle - half, x + 5 * em // 2, middle + half), width, colour, dash)
        draw.text((x + 3 * em, middle), text, fill=(240, 240, 240), font=font, anchor="lm")
        x += 5 * em + round(font.getlength(text))
    sheet = Image.new("RGB", (picture.width, picture.height + strip.height))
    sheet.paste(picture, (0, 0))
    sheet.paste(strip, (0, picture.height))
    return sheet
