"""Why boxes were missed, drawn: an image with every object by its gate, and close-ups of the missed ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from textwrap import wrap

import numpy as np
from PIL import Image, ImageDraw

from retinanet.analysis.trace.outcomes import GATES, Box, BoxTrace, ImageTrace
from retinanet.plotting.draw import PAPER, STRIP, Drawable, DrawLine, add_legend, contact_sheet, cut_out, to_picture
from retinanet.plotting.marks import Colour, Mark, Rect, choose_class_name, draw_frame, draw_marks, font_for, line_width

RIVAL_COLOUR: Colour = (220, 50, 50)
MOST = 12  # boxes in close-up
FRAME = 520  # pixels of the longer side of a close-up
WORDS = (760, 760)  # size of the picture for which the words of close-ups would be right


def draw_trace(image: Drawable, result: ImageTrace, *, legible: int = 1) -> Image.Image:
    """Every annotated box in the line of its gate; missed ones with their best anchor, best candidate and rival.

    Args:
        image: as for :func:`~retinanet.plotting.draw.draw_boxes`.
        result: what happened, in its pixels.
        legible: a small image is enlarged until its short side has so many pixels.

    Returns:
        An RGB picture with a legend as a strip below.
    """
    zoom = -(-legible // min(result.size))
    picture, result = to_picture(image, zoom), _name_classes(result)
    marks = []
    for box in sorted(result.boxes, key=lambda box: box.found):  # the first get the better places for their tags
        gate, tags = GATES[box.gate], tuple[str, ...]()
        if not box.found:
            _draw_clues(picture, box, (0, 0), zoom, anchors=1)
            tags = (f"{result.class_names[box.label]}: {box.gate}", box.gate)
        marks.append(Mark(_move(box.box, (0, 0), zoom), gate.colour, tags, gate.dash))
    draw_marks(picture, marks)
    entries = [(f"{count} {gate}", _gate_line(gate)) for gate, count in result.counts.items()]
    return add_legend(picture, entries + _explain_clues(result.missed, "best anchor of a missed box"), picture.size)


def close_ups(image: Drawable, result: ImageTrace) -> Image.Image | None:
    """The first 12 missed boxes, each cut out and enlarged, with all of its anchors; None where none was missed."""
    if not result.missed:
        return None
    picture, result, drawn = to_picture(image), _name_classes(result), result.missed[:MOST]
    sheet = contact_sheet([_draw_close_up(picture, box, result) for box in drawn])
    gates = {box.gate for box in drawn}
    entries = [(f"annotated, {gate}", _gate_line(gate)) for gate in GATES if gate in gates]
    return add_legend(sheet, entries + _explain_clues(result.missed, "anchors assigned to it"), WORDS)


def _name_classes(result: ImageTrace) -> ImageTrace:
    """The trace with names of classes that can be drawn."""
    names = result.class_names
    return replace(result, class_names=tuple(choose_class_name(names, label) for label in range(len(names))))


def _move(box: Box, origin: tuple[int, int], zoom: float) -> Box:
    x, y = origin
    return (box[0] - x) * zoom, (box[1] - y) * zoom, (box[2] - x) * zoom, (box[3] - y) * zoom


def _find_clues(missed: BoxTrace, anchors: int = 1) -> list[tuple[DrawLine, Box]]:
    """The first anchors of a missed box, its rival and its candidate, each with the line that it is drawn in."""
    clues: list[tuple[DrawLine, Box]] = [(_draw_anchor, assigned.anchor.box) for assigned in missed.anchors[:anchors]]
    others = ((_draw_rival, missed.by), (_draw_candidate, missed.furthest))
    return clues + [(draw_line, other.box) for draw_line, other in others if other]


def _draw_clues(picture: Image.Image, missed: BoxTrace, origin: tuple[int, int], zoom: float, anchors: int) -> None:
    for draw_line, box in _find_clues(missed, anchors):
        left, top, right, bottom = (round(edge) for edge in _move(box, origin, zoom))
        draw_line(picture, (left, top, max(right, left + 2), max(bottom, top + 2)), line_width(picture.size))


def _explain_clues(missed: Sequence[BoxTrace], anchors: str) -> list[tuple[str, DrawLine]]:
    """Entries of a legend for the clues that any of the missed boxes has; ``anchors`` says what its anchors are."""
    drawn = {draw_line for box in missed for draw_line, _ in _find_clues(box)}
    entries = (
        (anchors, _draw_anchor),
        ("its decoded box that came furthest", _draw_candidate),
        ("the box that stands in its place", _draw_rival),
    )
    return [(words, draw_line) for words, draw_line in entries if draw_line in drawn]


def _gate_line(gate: str) -> DrawLine:
    return partial(draw_frame, colour=GATES[gate].colour, dash=GATES[gate].dash)


def _draw_anchor(picture: Image.Image, rect: Rect, width: int) -> None:
    """A light and a dark pixel, seen on any ground but fainter than the others: anchors are many."""
    left, top, right, bottom = rect
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle(rect, outline=(255, 255, 255, 130))
    if right - left > 2 and bottom - top > 2:
        draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=(0, 0, 0, 100))


def _draw_rival(picture: Image.Image, rect: Rect, width: int) -> None:
    """Two lines."""
    left, top, right, bottom = rect
    thin, step = max(1, width // 2), max(3, width + 1)
    draw_frame(picture, rect, thin, RIVAL_COLOUR, None)
    if min(right - left, bottom - top) > 4 * step:
        draw_frame(picture, (left + step, top + step, right - step, bottom - step), thin, RIVAL_COLOUR, None)


def _draw_candidate(picture: Image.Image, rect: Rect, width: int) -> None:
    """White dots."""
    draw_frame(picture, rect, width, (255, 255, 255), (1.0, 1.5))


def _draw_close_up(image: Image.Image, missed: BoxTrace, result: ImageTrace) -> Image.Image:
    """The surroundings of one box, enlarged to ``FRAME``, with its words below."""
    around = np.array([missed.box, *(other.box for other in (missed.furthest, missed.by) if other)])
    low, high = around[:, :2].min(axis=0), around[:, 2:].max(axis=0)
    half = 0.7 * max(*(high - low), 16)
    left, top = (math.floor(edge) for edge in (low + high) / 2 - half)
    side = math.ceil(2 * half)
    picture = cut_out(image, (left, top, left + side, top + side), (FRAME, FRAME))

    _draw_clues(picture, missed, (left, top), FRAME / side, anchors=len(missed.anchors))
    gate = GATES[missed.gate]
    draw_marks(picture, [Mark(_move(missed.box, (left, top), FRAME / side), gate.colour, (), gate.dash)])

    font = font_for(WORDS)
    words = f"{result.name_box(missed)}: {result.explain(missed)}"
    lines = wrap(words, width=int(FRAME * 0.95 / (font.getlength("abcdefghij klmnop") / 17)))
    step = round(1.35 * font.getbbox("Ag")[3])
    strip = Image.new("RGB", (FRAME, step * (len(lines) + 1)), STRIP)
    ImageDraw.Draw(strip).text((step // 2, step // 2), "\n".join(lines), fill=PAPER, font=font, spacing=step // 4)
    return contact_sheet([picture, strip], 1, width=FRAME, gap=0)
