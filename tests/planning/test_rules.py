"""Each rule at its borders; what is measured stands in docs/results."""

from itertools import pairwise

import pytest

from retinanet.planning import rules
from retinanet.planning.fingerprint import Spread
from retinanet.planning.machine import GB

GPU = {"device": "cuda", "cores": 16, "bf16": True, "here": False}


def test_the_preset_follows_the_device(host):
    assert rules.choose_model(host())[0] == "lite"
    assert rules.choose_model(host(**GPU, device_memory=24 * GB))[0] == "resnet50"
    assert rules.choose_model(host(**GPU, device_memory=4 * GB))[0] == "resnet18"


def spread(value):
    return Spread(value, value, value, value, value)


@pytest.mark.parametrize(
    ("short", "long", "small", "device", "first"),
    [
        (480, 640, 36, "cpu", 416),  # small boxes get 32 pixels
        (480, 640, 100, "cpu", 384),  # not less, although boxes are large
        (480, 640, 20, "cpu", 480),  # not enlarged
        (200, 300, 10, "cpu", 384),  # enlarged twice, to the next multiple of 32
        (3000, 4000, 40, "cpu", 640),  # the limit of the device
        (3000, 4000, 40, "cuda", 800),
        (100, 100, 60, "cpu", 96),  # images that are smaller than the least
    ],
)
def test_the_size_follows_the_small_boxes(facts, short, long, small, device, first):
    sizes = rules.list_sizes(facts(short=spread(short), long=spread(long), small=small), device)
    assert sizes[0].short == first
    assert all(one.short > two.short for one, two in pairwise(sizes))
    assert all(size.long >= size.short and size.short % 32 == size.long % 32 == 0 for size in sizes)
    assert sizes[0].small == pytest.approx(small * min(first / short, sizes[0].long / long))
    assert all(size.small >= 0.8 * rules.LEAST_SIDE for size in sizes[1:])


def test_the_input_holds_the_whole_image(facts):
    for size in rules.list_sizes(facts(), "cpu"):
        height, width = size.input(facts())
        assert height * 640 >= 0.99 * 480 * width * 0.9 and width / height == pytest.approx(640 / 480, rel=0.12)


@pytest.mark.parametrize(
    ("images", "objects", "epochs"),
    [
        (10, 14, 72),
        (292, 14, 35),
        (292, 1, 35),
        (292, 28, 18),  # half as many views, where each shows twice as many objects
        (100, 1500, 13),  # an eighth at least
        (1000, 14, 12),
        (100_000, 14, 12),
    ],
)
def test_epochs_follow_the_images_and_their_objects(facts, images, objects, epochs):
    data = facts(images=images, classes={"cell": images * objects})
    assert rules.full_epochs(data)[0] == epochs
    assert 1 <= rules.least_epochs(data) <= rules.good_epochs(data) or images < 30


@pytest.mark.parametrize(
    ("most", "detections", "candidates"),
    [(0, 100, 1000), (66, 100, 1000), (67, 150, 1000), (300, 450, 1800), (1500, 2250, 9000)],
)
def test_limits_follow_the_fullest_image(facts, most, detections, candidates):
    limits = rules.choose_limits(facts(objects=Spread(0, 1, 2, 3, most)))
    assert (limits[0][0], limits[1][0]) == (detections, candidates)
    assert limits[0][0] >= most


@pytest.mark.parametrize(("images", "batch"), [(1, 1), (7, 1), (8, 2), (31, 4), (32, 8), (5000, 8)])
def test_few_images_make_small_batches(facts, images, batch):
    assert rules.choose_batch(facts(images=images), "cpu")[0] == batch


@pytest.mark.parametrize(
    ("names", "chance"),
    [(("left hand", "right hand"), 0.0), (("turn_left",), 0.0), (("bright", "leftover"), 0.5), (("cell",), 0.5)],
)
def test_sides_in_names_forbid_mirror_images(names, chance):
    assert rules.choose_flip(names)[0] == chance


@pytest.mark.parametrize(
    ("given", "sides"),
    [
        ((None, None), (800, 1333)),
        ((None, 512), (512, 512)),
        ((None, 2000), (800, 2000)),
        ((400, None), (400, 667)),
        ((400, 500), (400, 500)),
    ],
)
def test_a_side_that_is_left_out(given, sides):
    assert rules.complete_size(given, (800, 1333)) == sides
