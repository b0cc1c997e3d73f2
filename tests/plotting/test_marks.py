"""Frames and tags: where pixels may change, and where tags may lie."""

import numpy as np
import pytest
from PIL import Image

from retinanet.plotting import marks
from retinanet.plotting.marks import Mark, class_colour, draw_marks, ink_on, line_width

GREY = (128, 128, 128)


def drawn(size, *items):
    picture = Image.new("RGB", size, GREY)
    draw_marks(picture, items)
    return np.asarray(picture)


def changed(pixels):
    return (pixels != GREY[0]).any(-1)


def contrast(a, b):
    def luminance(colour):
        channels = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return np.dot([0.2126, 0.7152, 0.0722], channels)

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_class_colours_differ_and_do_not_change():
    colours = [class_colour(label) for label in range(21)]
    assert len(set(colours)) == 21
    assert class_colour(21) == class_colour(0) == (230, 159, 0)
    assert all(contrast(colour, ink_on(colour)) >= 4.5 for colour in colours)


def test_a_frame_changes_only_a_band_around_the_edges_of_its_box():
    pixels = drawn((400, 300), Mark((100, 80, 300, 220), (255, 0, 0)))
    mask = changed(pixels)
    width = line_width((400, 300))
    band = np.zeros_like(mask)
    band[80 - width - 1 : 220 + width + 1, 100 - width - 1 : 300 + width + 1] = True
    reach = 3 * width + 2  # rounded corners come inwards by the radius
    for y, x in ((slice(80 + reach, 220 - reach), slice(101, 299)), (slice(81, 219), slice(100 + reach, 300 - reach))):
        band[y, x] = False
    assert mask[~band].sum() == 0
    assert (pixels[80 - width, 150:250] == (255, 0, 0)).all()  # the line itself is solid and outside the object
    assert (pixels[120:180, 300] == (255, 0, 0)).all()


def test_edges_are_crisp_and_the_frame_is_symmetric():
    """No half-covered pixels on straight sides: a profile across one has the ground, the seam and the line only."""
    pixels = drawn((900, 900), Mark((200.4, 199.6, 699.6, 700.4), (255, 0, 0)))
    profile = {tuple(colour) for colour in pixels[150:260, 450].tolist()}
    assert len(profile) == 3
    assert np.array_equal(pixels, pixels[:, ::-1]) and np.array_equal(pixels, pixels[::-1])
    assert np.array_equal(pixels, pixels.transpose(1, 0, 2))


@pytest.mark.parametrize("dash", [(4, 4), (1.5, 2), (1, 3)])
def test_dashes_leave_parts_of_a_side_out_and_keep_the_corners(dash):
    colour = np.array((255, 0, 0))
    solid = (drawn((400, 300), Mark((100, 80, 300, 220), (255, 0, 0))) == colour).all(-1)
    dashed = (drawn((400, 300), Mark((100, 80, 300, 220), (255, 0, 0), dash=dash)) == colour).all(-1)
    assert not (dashed & ~solid).any()
    share = dashed[80 - 1].sum() / solid[80 - 1].sum()
    assert share == pytest.approx(dash[0] / sum(dash), abs=0.12)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (30, 20), (3000, 7)])
@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (-50, -50, 9000, 9000), (5, 5, 5, 5), (9, 9, 2, 2), (500, 500, 600, 600), (0.4, 0.4, 0.6, 0.6)],
)
def test_any_box_on_any_picture(size, box):
    assert drawn(size, Mark(box, (255, 0, 0), ("a long class name 0.99", "short"))).shape == (size[1], size[0], 3)


def tags_of(monkeypatch, size, items):
    """The rectangles of the tags, as they are placed, with None for those left out."""
    placed = []
    original = marks._place

    def record(*args):
        placed.append(original(*args))
        return placed[-1]

    monkeypatch.setattr(marks, "_place", record)
    drawn(size, *items)
    return [rect for rect in placed if rect is not None]


@pytest.mark.parametrize("count", [1, 20, 60])
def test_tags_stay_inside_and_apart(monkeypatch, count):
    rng = np.random.default_rng(count)
    corners = rng.uniform(-20, 400, (count, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(8, 120, (count, 2))], axis=1).tolist()
    tags = tags_of(monkeypatch, (400, 300), [Mark(tuple(box), (0, 158, 115), ("object 0.50",)) for box in boxes])
    assert tags
    cover = np.zeros((300, 400), dtype=int)
    for left, top, right, bottom in tags:
        assert 0 <= left < right <= 400 and 0 <= top < bottom <= 300
        cover[top:bottom, left:right] += 1
    assert cover.max() == 1
    assert cover.mean() < marks.MOST_TAGS + 0.02


def test_a_crowd_has_thin_lines_and_no_tags(monkeypatch):
    boxes = [(20.0 * x, 20.0 * y, 20.0 * x + 16, 20.0 * y + 16) for x in range(40) for y in range(20)]
    for count, crowded in ((20, False), (800, True)):
        items = [Mark(box, (0, 158, 115), ("object 0.50", "object")) for box in boxes[:count]]
        assert bool(tags_of(monkeypatch, (800, 400), items)) != crowded
    bare = [Mark(box, (0, 158, 115)) for box in boxes]
    assert np.array_equal(np.asarray(drawn((800, 400), *items)), np.asarray(drawn((800, 400), *bare)))


def test_a_tag_makes_room_for_a_neighbour(monkeypatch):
    """The usual place, above, is taken by a small object: the tag goes elsewhere."""
    big, small = Mark((100, 100, 220, 220), (0, 0, 255), ("big",)), Mark((100, 86, 130, 99), (255, 0, 0))
    ((left, top, right, bottom),) = tags_of(monkeypatch, (400, 300), [big, small])
    assert bottom <= 84 or top >= 99 or left >= 130 or right <= 100
    ((left, _, _, bottom),) = tags_of(monkeypatch, (400, 300), [big])
    assert (left, bottom) == (100 - line_width((400, 300)), 100 - line_width((400, 300)))


def test_a_caption_without_room_is_shortened_then_left_out(monkeypatch):
    for width, expected in ((300, True), (60, True), (12, False)):
        tags = tags_of(monkeypatch, (width, 60), [Mark((0, 20, width, 50), (0, 0, 255), ("erythrocyte 0.98", "ery"))])
        assert bool(tags) == expected
        if width == 60:
            assert tags[0][2] - tags[0][0] < 40
