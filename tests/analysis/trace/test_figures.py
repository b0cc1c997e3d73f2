"""Pictures of traces: what is drawn where, and what the legend and the bars say."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from retinanet.analysis.trace.figures import RIVAL_COLOUR, close_ups, draw_trace
from retinanet.analysis.trace.outcomes import GATES, Anchor, AssignedAnchor, BoxTrace, Entry, ImageTrace, Rival
from retinanet.analysis.trace.shares import draw_gate_bars


def anchor(*box):
    return Anchor(0, 8, 0, 0, 0, box)


def traced(*boxes, names=("ant", "bee")):
    return ImageTrace(boxes, (), (160, 200), 0.05, names)


BARE = BoxTrace(0, 0, (40, 40, 100, 100), "suppressed by NMS", (), 0.6, 1, None, None, None)
MISSED = replace(
    BARE,
    anchors=tuple(AssignedAnchor(anchor(*box), 0.5, False) for box in ((30, 50, 110, 90), (20, 60, 120, 80))),
    furthest=Entry(anchor(30, 50, 110, 90), (50, 50, 110, 110), -0.4, 0.402, 0.6),
    by=Rival((60, 60, 130, 130), 0, 0.7, 0.5, 0, None),
)
FOUND = BoxTrace(1, 1, (150, 20, 190, 60), "found", (), 0.6, 1, None, None, None)


def blank():
    return Image.new("RGB", (200, 160), (120, 120, 120))


def changed(picture, reference, x, y, reach=4):
    """Whether something is drawn near a point."""
    there, before = (
        np.asarray(one)[y - reach : y + reach + 1, x - reach : x + reach + 1].astype(int)
        for one in (picture, reference)
    )
    return bool((abs(there - before) > 20).any())


def test_every_clue_is_where_it_belongs():
    picture, plain = draw_trace(blank(), traced(MISSED, FOUND)), blank()
    bare = draw_trace(blank(), traced(BARE, FOUND))
    assert picture.width == 200 and picture.height > 160  # a legend
    for x, y in ((70, 99), (41, 70), (151, 40), (170, 21)):
        assert changed(picture, plain, x, y, 3) and changed(bare, plain, x, y, 3), (x, y)
    for x, y in ((80, 108), (128, 120), (32, 52)):  # candidate, rival, best anchor
        assert changed(picture, bare, x, y), (x, y)
    assert not changed(picture, bare, 22, 62, 2), "only the best anchor in the whole picture"
    assert not changed(picture, plain, 180, 140) and picture.height > bare.height


def test_every_gate_has_a_line_of_its_own():
    assert len({(gate.colour, gate.dash) for gate in GATES.values()}) == len(GATES)
    grey = [(gate.dash, np.dot(gate.colour, (0.299, 0.587, 0.114))) for gate in GATES.values()]
    for i, (dash, light) in enumerate(grey):  # told apart without colour: the same dash has another lightness
        assert all(abs(light - other) > 12 for same, other in grey[:i] if same == dash), i
    assert len({gate.hatch for gate in GATES.values()} - {""}) == len(GATES) - 2, "one bar is plain"


def test_zoom_enlarges_picture_and_boxes():
    picture = draw_trace(blank(), traced(FOUND), legible=480)
    assert picture.width == 600 and changed(picture, blank().resize((600, 480)), 452, 120)


def test_close_ups_are_of_the_missed_only():
    assert close_ups(blank(), traced(FOUND)) is None
    one, many = close_ups(blank(), traced(MISSED, FOUND)), close_ups(blank(), traced(*[MISSED] * 4))
    assert many.width > 1.9 * one.width and many.height > one.height + 500
    ink = np.asarray(one).astype(int)
    assert (abs(ink - RIVAL_COLOUR).sum(axis=2) < 12).sum() > 500, "the rival is drawn"


def test_a_close_up_at_the_border_of_a_tiny_image():
    edge = replace(BARE, box=(0, 0, 3, 2), gate="no anchor")
    sheet = close_ups(Image.new("L", (20, 10)), traced(edge, names=("words " * 40,)))
    assert sheet.mode == "RGB" and sheet.height > 520


def test_bars_add_up():
    groups = {"ant (10)": {"found": 5, "below threshold": 3, "wrong class": 2}, "bee (4)": {"found": 4}}
    figure = draw_gate_bars(groups)
    (axes,) = figure.axes
    bars = {c.get_label(): [patch.get_width() for patch in c.patches] for c in axes.containers}
    assert bars == {"below threshold": [pytest.approx(30), 0], "wrong class": [pytest.approx(20), 0]}
    assert [patch.get_x() for patch in axes.containers[1].patches] == [pytest.approx(30), 0], "stacked"
    assert "%" in axes.get_xlabel() and [text.get_text().strip() for text in axes.texts] == ["50.0", "0.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(groups)
    hatches = [c.patches[0].get_hatch() or "" for c in axes.containers]
    assert len(set(hatches)) == 2, "told apart without colour"


def test_bars_of_nothing():
    assert "nothing was missed" in [text.get_text() for text in draw_gate_bars({}).axes[0].texts]
