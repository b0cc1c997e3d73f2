"""Why boxes were missed, drawn: an image with every object by its gate, close-ups of the missed ones, and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from retinanet.analysis.trace.outcomes import FOUND, GATES, Box, BoxTrace, ImageTrace
from retinanet.plotting.draw import contact_sheet, to_picture
from retinanet.plotting.figures import FAINT, INK
from retinanet.plotting.marks import Colour, Mark, draw_frame, draw_marks, font_for, line_width

ANCHOR, CANDIDATE, RIVAL = "anchor", "candidate", "rival"  # what else is drawn of a missed box
CANDIDATE_COLOUR: Colour = (255, 255, 255)
RIVAL_COLOUR: Colour = (220, 50, 50)
STRIP = (38, 40, 46)
PAPER = (240, 240, 240)
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
    picture = to_picture(image, zoom)
    missed = [one for one in result.boxes if not one.found]
    marks = []
    for one in missed:
        _draw_clues(picture, one, (0, 0), zoom, anchors=1)
        tags = (f"{result.class_names[one.label]}: {one.gate}", one.gate)
        marks.append(Mark(_move(one.box, (0, 0), zoom), GATES[one.gate].colour, tags, GATES[one.gate].dash))
    for one in result.boxes:  # the first get the better places for their tags
        if one.found:
            marks.append(Mark(_move(one.box, (0, 0), zoom), GATES[FOUND].colour))
    draw_marks(picture, marks)
    entries = [(f"{count} {gate}", gate) for gate, count in result.counts.items()]
    return _stack(picture, _draw_legend(picture.width, picture.size, entries, missed, "best anchor of a missed box"))


def close_ups(image: Image.Image, result: ImageTrace, *, most: int = 12, columns: int = 3) -> Image.Image | None:
    """The missed boxes, each cut out and enlarged, with all of its anchors; None where none was missed.

    Args:
        image: the picture.
        result: what happened, in its pixels.
        most: how many are drawn.
        columns: pictures in a row.
    """
    missed = [one for one in result.boxes if not one.found]
    if not missed:
        return None
    pictures = [_close_up(image, one, f"{result.name_of(one)}: {result.explain(one)}") for one in missed[:most]]
    sheet = contact_sheet(pictures, columns)
    entries = [(f"annotated, {gate}", gate) for gate in GATES if any(one.gate == gate for one in missed[:most])]
    return _stack(sheet, _draw_legend(sheet.width, WORDS, entries, missed, "anchors assigned to it"))


def gate_bars(groups: Mapping[str, Mapping[str, int]], gates: Sequence[str]) -> Figure:
    """Shares of the missed boxes of each group, a bar each, stacked by gate.

    Args:
        groups: name -> boxes by gate; what is not among ``gates`` counts in the total only.
        gates: the parts of a bar, in order.
    """
    figure = Figure(figsize=(9.0, 1.6 + 0.42 * max(len(groups), 1)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("share of the annotated boxes of the group that were missed (%)", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, left=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    left = [0.0] * len(groups)
    for gate in gates:
        if not any(row.get(gate) for row in groups.values()):
            continue
        part = [100 * row.get(gate, 0) / max(sum(row.values()), 1) for row in groups.values()]
        fill = [channel / 255 for channel in GATES[gate].colour]
        style: dict[str, Any] = {
            "color": fill,
            "hatch": GATES[gate].hatch,
            "edgecolor": INK,
            "linewidth": 0.6,
            "label": gate,
        }
        axes.barh(list(groups), part, left=left, height=0.62, **style)
        left = [low + more for low, more in zip(left, part, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f"  {total:.1f}", va="center", color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.12 * max(left, default=0.0)))
    if axes.containers:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "nothing was missed", transform=axes.transAxes, ha="center", va="center", color=INK)
    return figure


def _move(box: Box, origin: tuple[int, int], zoom: float) -> Box:
    x, y = origin
    return (box[0] - x) * zoom, (box[1] - y) * zoom, (box[2] - x) * zoom, (box[3] - y) * zoom


def _draw_clues(picture: Image.Image, one: BoxTrace, origin: tuple[int, int], zoom: float, anchors: int) -> None:
    """The first anchors of a missed box, its rival and its candidate."""
    boxes = [(ANCHOR, assigned.anchor.box) for assigned in one.anchors[:anchors]]
    boxes += [(kind, other.box) for kind, other in ((RIVAL, one.by), (CANDIDATE, one.furthest)) if other]
    for kind, box in boxes:
        left, top, right, bottom = (round(edge) for edge in _move(box, origin, zoom))
        _draw_line(picture, (left, top, max(right, left + 2), max(bottom, top + 2)), kind, line_width(picture.size))


def _draw_line(picture: Image.Image, rect: tuple[int, int, int, int], kind: str, width: int) -> None:
    """A frame in the line of a gate or of a clue."""
    left, top, right, bottom = rect
    if kind == ANCHOR:  # a light and a dark pixel, seen on any ground but fainter than the others: anchors are many
        draw = ImageDraw.Draw(picture, "RGBA")
        draw.rectangle(rect, outline=(255, 255, 255, 130))
        if right - left > 2 and bottom - top > 2:
            draw.rectangle((left + 1, top + 1, right - 1, bottom - 1), outline=(0, 0, 0, 100))
    elif kind == RIVAL:  # two lines
        thin, step = max(1, width // 2), max(3, width + 1)
        draw_frame(picture, rect, thin, RIVAL_COLOUR, None)
        if min(right - left, bottom - top) > 4 * step:
            draw_frame(picture, (left + step, top + step, right - step, bottom - step), thin, RIVAL_COLOUR, None)
    elif kind == CANDIDATE:
        draw_frame(picture, rect, width, CANDIDATE_COLOUR, (1.0, 1.5))
    else:
        draw_frame(picture, rect, width, GATES[kind].colour, GATES[kind].dash)


def _close_up(image: Image.Image, one: BoxTrace, words: str) -> Image.Image:
    """The surroundings of one box, enlarged to ``FRAME``, with its words below."""
    around = [one.box, *(other.box for other in (one.furthest, one.by) if other)]
    low = [min(box[i] for box in around) for i in (0, 1)]
    high = [max(box[i] for box in around) for i in (2, 3)]
    half = 0.7 * max(high[0] - low[0], high[1] - low[1], 16)
    left, top = (math.floor((a + b) / 2 - half) for a, b in zip(low, high, strict=True))
    side = math.ceil(2 * half)
    region = Image.new("RGB", (side, side), STRIP)
    region.paste(image.convert("RGB"), (-left, -top))
    picture = region.resize((FRAME, FRAME), Image.Resampling.BICUBIC)

    zoom = FRAME / side
    _draw_clues(picture, one, (left, top), zoom, anchors=len(one.anchors))
    gate = GATES[one.gate]
    draw_marks(picture, [Mark(_move(one.box, (left, top), zoom), gate.colour, (), gate.dash)])

    font = font_for(WORDS)
    lines = wrap(words, width=int(FRAME * 0.95 / (font.getlength("abcdefghij klmnop") / 17)))
    step = round(1.35 * font.getbbox("Ag")[3])
    strip = Image.new("RGB", (FRAME, step * (len(lines) + 1)), STRIP)
    ImageDraw.Draw(strip).text((step // 2, step // 2), "\n".join(lines), fill=PAPER, font=font, spacing=step // 4)
    return _stack(picture, strip)


def _draw_legend(
    width: int, size: tuple[int, int], entries: list[tuple[str, str]], missed: Sequence[BoxTrace], anchors: str
) -> Image.Image:
    """A strip that says what each line means, in as many rows as it takes: first the entries, then the clues."""
    shown = {
        (anchors, ANCHOR): any(one.anchors for one in missed),
        ("its decoded box that came furthest", CANDIDATE): any(one.furthest for one in missed),
        ("the box that stands in its place", RIVAL): any(one.by for one in missed),
    }
    entries = entries + [entry for entry, there in shown.items() if there]
    font, line = font_for(size), line_width(size)
    em = round(font.getlength("M"))
    places: list[tuple[int, int]] = []
    x, row = em, 0
    for words, _ in entries:
        length = 5 * em + round(font.getlength(words))
        if x > em and x + length > width:
            x, row = em, row + 1
        places.append((x, row))
        x += length

    height = 2 * em + 2 * line
    strip = Image.new("RGB", (width, height * (row + 1)), STRIP)
    draw = ImageDraw.Draw(strip)
    for (x, row), (words, kind) in zip(places, entries, strict=True):
        middle, half = height * row + height // 2, em // 2 + line
        _draw_line(strip, (x, middle - half, x + 5 * em // 2, middle + half), kind, line)
        draw.text((x + 3 * em, middle), words, fill=PAPER, font=font, anchor="lm")
    return strip


def _stack(picture: Image.Image, strip: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + strip.height), STRIP)
    sheet.paste(picture, (0, 0))
    sheet.paste(strip, (0, picture.height))
    return sheet
