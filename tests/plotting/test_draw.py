"""Drawing: what is changed, what is not, and which detection counts as what."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.errors import UserError
from retinanet.evaluation.matching import match_image
from retinanet.plotting import marks
from retinanet.plotting.draw import (
    FALSE,
    HIT,
    MISSED,
    contact_sheet,
    draw_boxes,
    draw_comparison,
    to_picture,
)
from retinanet.plotting.marks import class_colour
from retinanet.types import Detections, Target

NAMES = ("ant", "bee", "cat")


def detections(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4).float()
    return Detections(
        boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long(), NAMES
    )


def target(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4).float()
    ignore = torch.tensor([len(row) > 2 for row in rows], dtype=torch.bool)
    return Target(boxes, torch.tensor([row[1] for row in rows]).long(), ignore)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def as_tensor(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def has(picture, colour):
    return bool((np.asarray(picture) == colour).all(-1).any())


FOUND = detections([[40, 60, 120, 150], 0.9, 1], [[200, 100, 260, 200], 0.4, 2], [[5, 5, 30, 30], 0.1, 0])


def draw_found(image, found, score=0.3):
    shown = found.above(score)
    return draw_boxes(image, shown.boxes, shown.labels, class_names=NAMES, scores=shown.scores)


def compare(image, found, known, score=0.3):
    shown = found.above(score)
    return draw_comparison(image, shown, known, *match_image(shown, known))


def test_nothing_to_draw_returns_the_picture_unchanged(image):
    nothing = detections()
    for picture in (
        draw_boxes(image, torch.zeros(0, 4)),
        draw_found(image, nothing),
        draw_found(image, FOUND, score=0.95),
    ):
        assert torch.equal(as_tensor(picture), image)
    compared = as_tensor(compare(image, nothing, Target.empty()))
    assert torch.equal(compared[:, :240], image)
    assert compared.shape[1] > 240  # the legend


@pytest.mark.parametrize("kind", ["tensor", "RGB", "L", "RGBA", "P"])
def test_the_input_is_not_changed(image, kind):
    given = image.clone() if kind == "tensor" else to_picture(image).convert(kind)
    before = given.clone() if kind == "tensor" else given.copy()
    everything = target([[40, 60, 120, 150], 1], [[9, 9, 90, 90], 0, "ignored"])
    for picture in (draw_found(given, FOUND), compare(given, FOUND, everything)):
        assert picture.mode == "RGB"
        assert picture.width == 320
        if kind == "tensor":
            assert torch.equal(given, before)
        else:
            assert given.tobytes() == before.tobytes()


def test_only_the_neighbourhood_of_the_boxes_changes(image):
    changed = (as_tensor(draw_found(image, FOUND)) != image).any(0)
    near = torch.zeros(240, 320, dtype=torch.bool)
    for x1, y1, x2, y2 in FOUND.boxes[:2].int().tolist():
        near[max(y1 - 22, 0) : y2 + 22, max(x1 - 5, 0) : x2 + 80] = True
        assert changed[y1 - 1, x1 + 10 : x2 - 10].all()
        assert not changed[(y1 + y2) // 2 - 10 : (y1 + y2) // 2 + 10, x1 + 10 : x2 - 10].any()
    assert changed.any()
    assert not changed[~near].any()


def test_the_colour_is_that_of_the_class_and_the_threshold_counts(image):
    picture = draw_found(image, FOUND)
    assert has(picture, class_colour(1)) and has(picture, class_colour(2)) and not has(picture, class_colour(0))
    assert has(draw_found(image, FOUND, score=0.0), class_colour(0))


def test_zoom_draws_on_a_larger_picture(image):
    picture = draw_boxes(image, torch.tensor([[40, 60, 120, 150], [200, 20, 220, 40]]), torch.tensor([0, 1]), zoom=3)
    assert picture.size == (960, 720)
    plain = np.asarray(to_picture(image, 3))
    rows, columns = np.nonzero((np.asarray(picture) == class_colour(0)).all(-1) & (plain != class_colour(0)).any(-1))
    assert abs(columns.min() - 120) <= 4 and abs(columns.max() - 360) <= 4
    assert abs(rows.min() - 180) <= 4 and abs(rows.max() - 450) <= 4


def test_a_comparison_shows_what_there_is(image):
    known = target([[40, 60, 120, 150], 1], [[200, 20, 280, 80], 0])
    grey = torch.full((3, 240, 320), 128, dtype=torch.uint8)

    def shows(found, known):
        body = compare(grey, found, known).crop((0, 0, 320, 240))
        return [has(body, style[0]) for style in (HIT, FALSE, MISSED)]

    assert shows(FOUND, known) == [True, True, True]
    assert shows(detections(), known) == [False, False, True]
    assert shows(FOUND, Target.empty()) == [False, True, False]
    perfect = detections([[40, 60, 120, 150], 0.9, 1], [[200, 20, 280, 80], 0.8, 0])
    assert shows(perfect, known) == [True, False, False]
    assert compare(grey[:, :20, :20], FOUND, known).size == (20, 20)  # no room for a legend


def test_styles_are_told_apart_without_colour():
    lines = {style[1] for style in (HIT, FALSE, MISSED)}
    assert len(lines) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (2000, 1500)])
@pytest.mark.parametrize("count", [0, 200])
def test_any_number_of_boxes_on_any_size(size, count):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    found = Detections(
        torch.cat([corner, corner + 20], 1),
        torch.linspace(1, 0.5, count),
        torch.randint(0, 3, (count,), generator=generator),
        NAMES,
    )
    picture = draw_found(torch.zeros(3, *size, dtype=torch.uint8), found)
    assert picture.size == (size[1], size[0])
    assert (np.asarray(picture).max() > 0) == bool(count)


def test_mistakes_are_named(image):
    boxes = torch.zeros(2, 4)
    with pytest.raises(UserError, match=r"\(3, H, W\) uint8"):
        draw_boxes(image.float(), boxes)
    with pytest.raises(UserError, match="uint8"):
        draw_boxes(image[None], boxes)
    with pytest.raises(UserError, match="2 boxes to draw but 1 labels"):
        draw_boxes(image, boxes, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(UserError, match="labels go from 0 to 3, but there are 3"):
        draw_boxes(image, boxes, torch.tensor([0, 3]), class_names=NAMES)
    with pytest.raises(UserError, match="zoom"):
        draw_boxes(image, boxes, zoom=0)
    with pytest.raises(UserError, match="at least one"):
        contact_sheet([])


def test_a_contact_sheet_tiles_and_shrinks_but_never_enlarges():
    red, green = Image.new("RGB", (100, 50), (255, 0, 0)), Image.new("RGB", (60, 80), (0, 255, 0))
    sheet = contact_sheet([red, green, red], 2, gap=10)
    assert sheet.size == (210, 80 + 10 + 50)
    assert sheet.getpixel((0, 0)) == (255, 0, 0)
    assert sheet.getpixel((110 + 19, 0)) == (255, 255, 255)
    assert sheet.getpixel((110 + 20, 79)) == (0, 255, 0)
    assert sheet.getpixel((0, 90)) == (255, 0, 0)
    assert contact_sheet([red, red], 2, width=110, gap=10).size == (110, 25)
    assert contact_sheet([red], 4).size == (100, 50)


def test_arrays_are_drawn_as_tensors_are(image):
    """What an exported model finds."""
    array = image.permute(1, 2, 0).numpy()
    parts = (FOUND.boxes.numpy(), FOUND.scores.numpy(), FOUND.labels.numpy())
    found, annotated = Detections(*parts, NAMES), target([[40, 60, 120, 150], 1], [[9, 9, 90, 90], 0, "ignored"])
    for draw in (draw_found, lambda *what: compare(*what, annotated, score=0.0)):
        wanted = draw(image, FOUND)
        for pixels in (image, array, array[::-1][::-1], to_picture(image)):
            assert draw(pixels, found).tobytes() == wanted.tobytes()
    labels = {"labels": FOUND.labels.numpy(), "scores": FOUND.scores.numpy(), "class_names": NAMES}
    assert draw_boxes(array, parts[0], **labels).tobytes() == draw_found(image, FOUND, score=0).tobytes()
    for wrong in (array.astype(np.float32), array[..., 0], np.asarray(image)):
        with pytest.raises(UserError, match=r"an image to draw on is .*\(H, W, 3\) uint8 RGB array, got"):
            to_picture(wrong)


def test_names_are_drawn_with_their_letters_or_as_a_number(image, caplog):
    """Latin, Greek and Cyrillic letters have shapes of their own; a name that the font lacks is never empty boxes."""
    font = marks.font_for((320, 240))
    missing = bytes(font.getmask("\uffff"))
    assert missing != bytes(font.getmask(" ")), "a rectangle stands for a letter that the font lacks"
    for letter in "éßλЖ":
        assert bytes(font.getmask(letter)) != missing
    assert bytes(font.getmask("细")) == missing

    marks._warn_of_letters.cache_clear()
    names, labels = ("cellule éclatée", "细胞"), torch.tensor([0, 1])
    assert [marks.choose_class_name(names, label) for label in (0, 1)] == ["cellule éclatée", "class 1"]
    boxes = torch.tensor([[40.0, 60, 120, 150], [180, 60, 260, 150]])
    picture = draw_boxes(image, boxes, labels, class_names=names)
    assert picture.tobytes() == draw_boxes(image, boxes, labels, class_names=(names[0], "class 1")).tobytes()
    assert len(caplog.records) == 1 and "the font lacks" in caplog.text


def test_boxes_are_drawn_without_torch():
    code = (
        "import sys, numpy; from retinanet.plotting.draw import draw_boxes; zeros = numpy.zeros\n"
        "draw_boxes(zeros((90, 90, 3), 'uint8'), zeros((1, 4)) + 40, zeros(1, int), class_names=('ant',))\n"
        "print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "False"]
