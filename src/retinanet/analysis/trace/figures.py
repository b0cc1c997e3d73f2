"""Why boxes were missed, drawn: an image with every object by its gate, close-ups of the missed ones, and shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from retinanet.plotting.draw import contact_sheet, to_picture
from retinanet.plotting.figures import FAINT, INK
from retinanet.plotting.marks import Colour, Mark, draw_frame, draw_marks, font_for, line_width

Box = tuple[float, float, float, float]
Dash = tuple[float, float] | None

# Network's fault in warm colours, post-processing's in cold ones; told apart without colour by their tags and lines.
GATE_STYLES: dict[str, tuple[Colour, Dash, str]] = {  # line on a picture: colour and dash; hatch of a bar
    "found": ((86, 180, 233), None, ""),
    "no anchor": ((213, 94, 0), (1.5, 2), "xx"),
    "never localised": ((213, 94, 0), (5, 2.5), "//"),
    "below threshold": ((240, 228, 66), (5, 2.5), ""),
    "wrong class": ((204, 121, 167), (3, 2), "\\\\"),
    "cut by top-k": ((0, 158, 115), (2.5, 4), "--"),
    "suppressed by NMS": ((230, 159, 0), (8, 2.5), ".."),
    "shared detection": ((0, 158, 115), (12, 3), "++"),
    "cut by the cap": ((0, 158, 115), (8, 2.5), "oo"),
}
CANDIDATE: Colour = (255, 255, 255)
CANDIDATE_DASH = (1.0, 1.5)
RIVAL: Colour = (220, 50, 50)
STRIP = (38, 40, 46)
PAPER = (240, 240, 240)
FRAME = 520  # pixels of the longer side of a close-up
WORDS = (760, 760)  # size of the picture for which the words of close-ups would be right


@dataclass(frozen=True)
class TracedBox:
    """What there is to draw of one annotated box; all boxes are xyxy in pixels of the image.

    Attributes:
        box: as annotated.
        gate: where it ended, a key of ``GATE_STYLES``.
        name: its class.
        words: a sentence on what happened, below its close-up.
        anchors: those assigned to it, best first.
        candidate: the decoded box that came furthest, if any was in place.
        rival: the box that suppressed it or stands in its place.
    """

    box: Box
    gate: str
    name: str
    words: str
    anchors: Sequence[Box] = ()
    candidate: Box | None = None
    rival: Box | None = None


def draw_trace(image: Image.Image, boxes: Sequence[TracedBox], *, zoom: int = 1) -> Image.Image:
    """Every annotated box in the line of its gate; missed ones with their best anchor, best candidate and rival.

    Args:
        image: the picture.
        boxes: what happened.
        zoom: enlarge the picture this many times first.

    Returns:
        An RGB picture with a legend as a strip below.
    """
    picture = to_picture(image, zoom)
    missed = [one for one in boxes if one.gate != "found"]
    for one in missed:
        _draw_clues(picture, one, (0.0, 0.0), zoom, anchors=1)
    order = sorted(boxes, key=lambda one: one.gate == "found")  # the first get the better places for their tags
    draw_marks(picture, [_mark(one, (0.0, 0.0), zoom, tagged=one.gate != "found") for one in order])
    entries: list[tuple[str, str]] = []
    for gate in GATE_STYLES:
        count = sum(one.gate == gate for one in boxes)
        if count:
            entries.append((f"{count} {gate}", gate))
    if missed:
        entries += _clue_words(missed, "best anchor of a missed box")
    return _above(picture, _legend(picture.width, picture.size, entries))


def close_ups(
    image: Image.Image, boxes: Sequence[TracedBox], *, most: int = 12, columns: int = 3
) -> Image.Image | None:
    """The missed boxes, each cut out and enlarged, with all of its anchors; None where none was missed.

    Args:
        image: the picture.
        boxes: what happened.
        most: how many are drawn.
        columns: pictures in a row.
    """
    missed = [one for one in boxes if one.gate != "found"]
    if not missed:
        return None
    sheet = contact_sheet([_close_up(image, one) for one in missed[:most]], columns)
    gates = [(f"annotated, {gate}", gate) for gate in GATE_STYLES if any(one.gate == gate for one in missed[:most])]
    entries = [*gates, *_clue_words(missed, "anchors assigned to it")]
    return _above(sheet, _legend(sheet.width, WORDS, entries))


def gate_bars(groups: Mapping[str, Mapping[str, int]], gates: Sequence[str]) -> Figure:
    """Shares of the missed boxes of each group, a bar each, stacked by gate.

    Args:
        groups: name -> boxes by gate; what is not among ``gates`` counts in the total only.
        gates: the parts of a bar, in order.
    """
    shown = [gate for gate in gates if any(row.get(gate) for row in groups.values())]
    figure = Figure(figsize=(9.0, 1.6 + 0.42 * max(len(groups), 1)), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("share of the annotated boxes of the group that were missed (%)", color=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9, left=False)
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    names = list(groups)
    left = [0.0] * len(names)
    for gate in shown:
        colour, _, hatch = GATE_STYLES[gate]
        part = [100 * groups[name].get(gate, 0) / max(sum(groups[name].values()), 1) for name in names]
        fill = [channel / 255 for channel in colour]
        axes.barh(
            names, part, left=left, height=0.62, color=fill, hatch=hatch, edgecolor=INK, linewidth=0.6, label=gate
        )
        left = [low + more for low, more in zip(left, part, strict=True)]
    for row, total in enumerate(left):
        axes.text(total, row, f"  {total:.1f}", va="center", color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, 1.12 * max(left, default=0.0)))
    if shown:
        figure.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=9, labelcolor=INK)
    else:
        axes.text(0.5, 0.5, "nothing was missed", transform=axes.transAxes, ha="center", va="center", color=INK)
    return figure


def _clue_words(missed: Sequence[TracedBox], anchors: str) -> list[tuple[str, str]]:
    """Legend entries for what is drawn of missed boxes."""
    words = [(anchors, "anchor")] if any(one.anchors for one in missed) else []
    words += [("its decoded box that came furthest", "candidate")] if any(one.candidate for one in missed) else []
    return words + ([("the box that stands in its place", "rival")] if any(one.rival for one in missed) else [])


def _moved(box: Box, origin: tuple[float, float], zoom: float) -> Box:
    x, y = origin
    return (box[0] - x) * zoom, (box[1] - y) * zoom, (box[2] - x) * zoom, (box[3] - y) * zoom


def _rect(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(edge) for edge in box)
    return left, top, max(right, left + 2), max(bottom, top + 2)


def _mark(one: TracedBox, origin: tuple[float, float], zoom: float, *, tagged: bool) -> Mark:
    colour, dash, _ = GATE_STYLES[one.gate]
    captions = (f"{one.name}: {one.gate}", one.gate) if tagged else ()
    return Mark(_moved(one.box, origin, zoom), colour, captions, dash)


def _draw_clues(picture: Image.Image, one: TracedBox, origin: tuple[float, float], zoom: float, anchors: int) -> None:
    """Anchors thin, the rival as a double line, the candidate dotted."""
    width = line_width(picture.size)
    for box in one.anchors[:anchors]:
        _draw_thin(picture, _rect(_moved(box, origin, zoom)))
    if one.rival:
        _draw_double(picture, _rect(_moved(one.rival, origin, zoom)), width)
    if one.candidate:
        draw_frame(picture, _rect(_moved(one.candidate, origin, zoom)), width, CANDIDATE, CANDIDATE_DASH)


def _draw_thin(picture: Image.Image, rect: tuple[int, int, int, int]) -> None:
    """A line of one light and one dark pixel, seen on any ground but fainter than the others: anchors are many."""
    draw = ImageDraw.Draw(picture, "RGBA")
    draw.rectangle(rect, outline=(255, 255, 255, 130))
    if rect[2] - rect[0] > 2 and rect[3] - rect[1] > 2:
        draw.rectangle((rect[0] + 1, rect[1] + 1, rect[2] - 1, rect[3] - 1), outline=(0, 0, 0, 100))


def _draw_double(picture: Image.Image, rect: tuple[int, int, int, int], width: int) -> None:
    thin, step = max(1, width // 2), max(3, width + 1)
    draw_frame(picture, rect, thin, RIVAL, None)
    inner = (rect[0] + step, rect[1] + step, rect[2] - step, rect[3] - step)
    if inner[2] - inner[0] > 2 * step and inner[3] - inner[1] > 2 * step:
        draw_frame(picture, inner, thin, RIVAL, None)


def _close_up(image: Image.Image, one: TracedBox) -> Image.Image:
    """The surroundings of one box, enlarged to ``FRAME``, with its words below."""
    around = [box for box in (one.box, one.candidate, one.rival) if box]
    low = [min(box[i] for box in around) for i in (0, 1)]
    high = [max(box[i] for box in around) for i in (2, 3)]
    half = 0.7 * max(high[0] - low[0], high[1] - low[1], 16)
    centre = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
    left, top = math.floor(centre[0] - half), math.floor(centre[1] - half)
    side = math.ceil(2 * half)
    zoom = FRAME / side
    region = Image.new("RGB", (side, side), STRIP)
    region.paste(image.convert("RGB"), (-left, -top))
    picture = region.resize((FRAME, FRAME), Image.Resampling.BICUBIC)
    _draw_clues(picture, one, (left, top), zoom, anchors=len(one.anchors))
    draw_marks(picture, [_mark(one, (left, top), zoom, tagged=False)])
    font = font_for(WORDS)
    lines = wrap(one.words, width=int(FRAME * 0.95 / (font.getlength("abcdefghij klmnop") / 17)))
    step = round(1.35 * font.getbbox("Ag")[3])
    strip = Image.new("RGB", (FRAME, step * (len(lines) + 1)), STRIP)
    ImageDraw.Draw(strip).text((step // 2, step // 2), "\n".join(lines), fill=PAPER, font=font, spacing=step // 4)
    return _above(picture, strip)


def _legend(width: int, size: tuple[int, int], entries: Sequence[tuple[str, str]]) -> Image.Image:
    """A strip that says what each line means, in as many rows as it takes."""
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
        rect = (x, middle - half, x + 5 * em // 2, middle + half)
        if kind == "rival":
            _draw_double(strip, rect, line)
        elif kind in GATE_STYLES:
            draw_frame(strip, rect, line, *GATE_STYLES[kind][:2])
        elif kind == "anchor":
            _draw_thin(strip, rect)
        else:
            draw_frame(strip, rect, line, CANDIDATE, CANDIDATE_DASH)
        draw.text((x + 3 * em, middle), words, fill=PAPER, font=font, anchor="lm")
    return strip


def _above(picture: Image.Image, strip: Image.Image) -> Image.Image:
    sheet = Image.new("RGB", (picture.width, picture.height + strip.height), STRIP)
    sheet.paste(picture, (0, 0))
    sheet.paste(strip, (0, picture.height))
    return sheet
