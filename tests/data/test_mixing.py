"""Views of several images: pixels and boxes stay together, and what is cut off is no background."""

from dataclasses import replace

import pytest
import torch
from tests.data.test_transforms import extent, painted

from retinanet.data.mixing import GREY, mosaic, paste, place, turn, zoom
from retinanet.data.transforms import Augment
from retinanet.types import Target

BOXES = ((2, 3, 9, 7), (20, 0, 21, 5), (11, 12, 30, 19))


def same_places(image, target):
    """Whether every box is the extent of the pixels that have its colour."""
    return all(
        box == extent(image, label) for box, label in zip(target.boxes.tolist(), target.labels.tolist(), strict=True)
    )


def test_turns_keep_every_pixel_and_box():
    view, seen = painted(19, 30, *BOXES, ignore=[False, True, False]), set()
    for seed in range(20):
        torch.manual_seed(seed)
        image, target = turn(view)
        seen.add(next(k for k in (1, 2, 3) if torch.equal(image, view[0].rot90(k, (1, 2)))))
        assert same_places(image, target) and target.ignore.tolist() == [False, True, False]
    assert seen == {1, 2, 3}


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_zoom_keeps_the_size_and_the_objects_at_their_pixels(factor):
    view = painted(40, 60, (10, 10, 20, 30), (36, 4, 52, 24))
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = zoom(view, factor)
        assert image.shape == (3, 40, 60)
        for box, label, ignore in zip(
            target.boxes.tolist(), target.labels.tolist(), target.ignore.tolist(), strict=True
        ):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 60 and 0 <= y1 < y2 <= 40
            whole = view[1].boxes[label] * factor
            area = ((whole[2] - whole[0]) * (whole[3] - whole[1])).item()
            assert ignore == ((x2 - x1) * (y2 - y1) < 0.5 * area)
            x, y = int((x1 + x2) / 2), int((y1 + y2) / 2)
            assert abs(int(image[0, y, x]) - 50 - label) <= 25, "the middle of a box has the colour of its object"
    if factor == 1:
        assert torch.equal(image, view[0]) and torch.equal(target.boxes, view[1].boxes)


def test_a_mosaic_shows_four_images_each_inside_its_quarter():
    own = painted(40, 60, (2, 2, 50, 36))
    others = [painted(30 + 20 * i, 90, (5, 5, 80, 25)) for i in range(3)]
    for number, (image, _) in enumerate(others):
        image[1] = 10 * (number + 1)
    waiting = iter(others)
    torch.manual_seed(3)
    image, target = mosaic(own, lambda: next(waiting))
    assert image.shape == own[0].shape and next(waiting, None) is None
    assert set(image[1].unique().tolist()) <= {0, 10, 20, 30, GREY}
    assert len({tuple(box) for box in target.boxes.tolist()}) == len(target) == 4
    limits = torch.tensor([60, 40, 60, 40])
    assert (target.boxes >= 0).all() and (target.boxes <= limits).all()
    for (x1, y1, x2, y2), colour in zip(target.boxes.int().tolist(), (0, 10, 20, 30), strict=True):
        assert (image[0, y1:y2, x1:x2] == 50).all() and (image[1, y1:y2, x1:x2] == colour).all()


def test_pasted_objects_are_where_their_boxes_say_and_hide_none():
    other = painted(50, 50, (0, 0, 12, 9), (30, 20, 49, 44), (5, 30, 10, 40), ignore=[False, False, True])
    other[0][0][other[0][0] > 0] += 50
    pasted = 0
    for seed in range(40):
        view = painted(40, 60, (2, 3, 30, 20))
        before = view[0].clone()
        torch.manual_seed(seed)
        image, target = paste(view, other)
        assert torch.equal(view[0], before), "the image of the data set is not drawn on"
        assert target.boxes[0].tolist() == [2, 3, 30, 20]
        for (x1, y1, x2, y2), label in zip(target.boxes[1:].int().tolist(), target.labels[1:].tolist(), strict=True):
            inside = image[0, y1:y2, x1:x2]
            assert label in (0, 1) and 100 + label in inside and (x2 - x1, y2 - y1) in ((12, 9), (19, 24))
            pasted += 1
        assert not target.ignore.any()
    assert pasted > 20


def test_a_large_patch_hides_no_small_object():
    other = painted(70, 70, (0, 0, 60, 60))
    view = painted(70, 70, (30, 30, 36, 36))
    for seed in range(30):
        torch.manual_seed(seed)
        image, target = paste(view, other)
        assert torch.equal(image[0, 30:36, 30:36], view[0][0, 30:36, 30:36]) or len(target) == 1
        assert len(target) == 1, "every place of so large an object covers the small one"


def test_an_object_with_another_on_it_is_not_pasted():
    """The other would come along without its box."""
    other = painted(50, 50, (0, 0, 20, 20), (5, 5, 12, 12), (40, 40, 48, 46))
    for seed in range(30):
        torch.manual_seed(seed)
        assert set(paste(painted(60, 60), other)[1].labels.tolist()) <= {2}


def test_a_reduction_to_nothing_leaves_two_pixels():
    for size in ((2, 3), (3, 1), (1, 1)):
        image, target = zoom((torch.zeros(3, *size, dtype=torch.uint8), Target.empty()), 0.3)
        assert image.shape == (3, *size) and len(target) == 0


def test_what_is_left_of_a_cut_object_is_ignored():
    view = painted(20, 20, (0, 0, 10, 10), (12, 12, 18, 18))
    _, target = place(torch.zeros(3, 20, 20, dtype=torch.uint8), view, (-6, 0), (0, 0, 20, 20))
    assert target.boxes.tolist() == [[0, 0, 10, 4], [12, 6, 18, 12]] and target.ignore.tolist() == [True, False]
    _, target = place(torch.zeros(3, 20, 20, dtype=torch.uint8), view, (-11, 0), (0, 0, 20, 20))
    assert target.labels.tolist() == [1]


def test_the_last_epochs_see_images_as_they_are():
    augment = Augment(hflip=0.5, mosaic=1.0, paste=1.0, zoom=(0.5, 2.0), closing=3)
    assert augment.in_epoch(8, 12) == augment
    assert augment.in_epoch(9, 12) == replace(augment, mosaic=0.0, paste=0.0, zoom=(1.0, 1.0))
    assert replace(augment, closing=0).in_epoch(11, 12).mosaic == 1.0


def test_an_image_without_objects_can_take_part():
    empty = (torch.zeros(3, 30, 40, dtype=torch.uint8), Target.empty())
    for seed in range(5):
        torch.manual_seed(seed)
        image, target = Augment(turn=1, zoom=(0.5, 2), mosaic=1, paste=1)(*empty, lambda: empty)
        assert len(target) == 0 and image.dtype == torch.uint8
