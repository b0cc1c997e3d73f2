"""Why boxes were missed, drawn: an image with every object by its gate, close-ups of the missed ones, and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from retinanet.analysis.trace.outcomes import GATES, Box, BoxTrace, ImageTrace
from retinanet.plotting.draw import PAPER, STRIP, DrawLine, add_legend, contact_sheet, to_picture
from retinanet.plotting.figures import INK, LEGEND, make_axes, say_empty
from retinanet.plotting.marks import Colour, Mark, Rect, choose_class_name, draw_frame, draw_marks, font_for, line_width

RIVAL_COLOUR: Colour = (220, 50, 50)
FRAME = 520  # pixels of the longer side of a close-up
WORDS = (760, 760)  # size of the picture for which the words of close-ups would be right


def draw_trace(image: Image.Image, result: ImageTrace, *, zoom: int = 1) -> Image.Image:
    """Every annotated box in the line of its gate; missed ones with their best anchor, best candidate and rival.

    Args:
        image: the picture.
        result: what happened, in its pixels.
        zoom: enlarge the picture this many times first.

    Returns:
        An RGB picture with a legend as a strip below.
    """
    picture, result = to_picture(image, zoom), _name_classes(result)
    missed = [box for box in result.boxes if not box.found]
    marks = []
    for box in sorted(result.boxes, key=lambda box: box.found):  # the first get the better places for their tags
        gate, tags = GATES[box.gate], tuple[str, ...]()
        if not box.found:
            _draw_clues(picture, box, (0, 0), zoom, anchors=1)
            tags = (f"{result.class_names[box.label]}: {box.gate}", box.gate)
        marks.append(Mark(_move(box.box, (0, 0), zoom), gate.colour, tags, gate.dash))
    draw_marks(picture, marks)
    entries = [(f"{count} {gate}", _gate_line(gate)) for gate, count in result.counts.items()]
    return add_legend(picture, entries + _explain_clues(missed, "best anchor of a missed box"), picture.size)


def close_ups(image: Image.Image, result: ImageTrace, *, most: int = 12, columns: int = 3) -> Image.Image | None:
    """The missed boxes, each cut out and enlarged, with all of its anchors; None where none was missed.

    Args:
        image: the picture.
        result: what happened, in its pixels.
        most: how many are drawn.
        columns: pictures in a row.
    """
    missed, result = [box for box in result.boxes if not box.found], _name_classes(result)
    if not missed:
        return None
    drawn = missed[:most]
    sheet = contact_sheet([_draw_close_up(image, box, result) for box in drawn], columns)
    gates = {box.gate for box in drawn}
    entries = [(f"annotated, {gate}", _gate_line(gate)) for gate in GATES if gate in gates]
    return add_legend(sheet, entries + _explain_clues(missed, "anchors assigned to it"), WORDS)


def draw_gate_bars(groups: Mapping[str, Mapping[str, int]], gates: Sequence[str]) -> Figure:
    """Shares of the missed boxes of each group, a bar each, stacked by gate.

    Args:
        groups: name -> boxes by gate; what is not among ``gates`` counts in the total only.
        gates: the parts of a bar, in order.
    """
    title = "share of the annotated boxes of the group that were missed (%)"
    figure, axes = make_axes("", title, "", size=(9.0, 1.6 + 0.42 * max(len(groups), 1)), grid="x")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False)
    left = np.zeros(len(groups))
    for name in gates:
        part = np.array([100 * row.get(name, 0) / max(sum(row.values()), 1) for row in groups.values()])
        if part.any():
            gate = GATES[name]
            fill = np.array(gate.colour) / 255
            look: dict[str, Any] = {"color": fill, "hatch": gate.hatch, "edgecolor": INK, "linewidth": 0.6}
            axes.barh(list(groups), part, left=left, height=0.62, label=name, **look)
            left = left + part
    for row, total in enumerate(left):
        axes.text(total, row, f"  {total:.1f}", va="center", color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.12 * left.max(initial=0.0)))
    if axes.containers:
        figure.legend(loc="outside upper left", ncols=4, **LEGEND)
    else:
        say_empty(axes, "nothing was missed")
    return figure


def _name_classes(result: ImageTrace) -> ImageTrace:
    """The trace with names of classes that can be drawn."""
    names = result.class_names
    return replace(result, class_names=tuple(choose_class_name(names, label) for label in range(len(names))))


def _move(box: Box, origin: tuple[int, int], zoom: float) -> Box:
    x, y = origin
    return (box[0] - x) * zoom, (box[1] - y) * zoom, (box[2] - x) * zoom, (box[3] - y) * zoom


def _draw_clues(picture: Image.Image, missed: BoxTrace, origin: tuple[int, int], zoom: float, anchors: int) -> None:
    """The first anchors of a missed box, its rival and its candidate."""
    clues = [(_draw_anchor, assigned.anchor.box) for assigned in missed.anchors[:anchors]]
    clues += [(_draw_rival, missed.by.box)] if missed.by else []
    clues += [(_draw_candidate, missed.furthest.box)] if missed.furthest else []
    for draw_line, box in clues:
        left, top, right, bottom = (round(edge) for edge in _move(box, origin, zoom))
        draw_line(picture, (left, top, max(right, left + 2), max(bottom, top + 2)), line_width(picture.size))


def _explain_clues(missed: Sequence[BoxTrace], anchors: str) -> list[tuple[str, DrawLine]]:
    """Entries of a legend for the clues that any of the missed boxes has; ``anchors`` says what its anchors are."""
    entries = (
        (anchors, _draw_anchor, any(box.anchors for box in missed)),
        ("its decoded box that came furthest", _draw_candidate, any(box.furthest for box in missed)),
        ("the box that stands in its place", _draw_rival, any(box.by for box in missed)),
    )
    return [(words, draw_line) for words, draw_line, there in entries if there]


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
    region = Image.new("RGB", (side, side), STRIP)
    region.paste(image.convert("RGB"), (-left, -top))
    picture = region.resize((FRAME, FRAME), Image.Resampling.BICUBIC)

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
