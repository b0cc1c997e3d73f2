import numpy as np
import pytest
from PIL import Image

from retinanet.data.annotations import Annotations, BoxColumns, ImageEntry, declared_size, select_classes
from retinanet.data.check import judge_split
from retinanet.data.faults import Notes
from retinanet.errors import UserError


@pytest.fixture
def entries(tmp_path):
    def make(*sizes):
        paths = [tmp_path / f"{number}.png" for number in range(len(sizes))]
        for path in paths:
            path.touch()
        return [ImageEntry(path, number, size) for number, (path, size) in enumerate(zip(paths, sizes, strict=True))]

    return make


def checked_samples(found):
    part = judge_split("", found, Notes())
    return part.samples(), [fault.sentence for fault in part.faulty_boxes()]


def annotations(images, owners, xyxy, **columns):
    count = len(owners)
    plain = {"labels": list(range(count)), "ignore": [False] * count, "areas": [float("nan")] * count}
    columns = {**plain, "where": lambda row: f"row {row}", **columns}
    return Annotations(("a",), (1,), images, BoxColumns(owners=owners, xyxy=xyxy, **columns))


def test_boxes_in_any_order_come_to_their_image_in_that_order(entries):
    random = np.random.default_rng(0)
    owners = random.integers(0, 5, 200)
    corners = random.uniform(0, 90, (200, 2))
    xyxy = np.concatenate([corners, corners + random.uniform(1, 30, (200, 2))], axis=1)
    ignore, areas = random.random(200) < 0.3, random.uniform(1, 99, 200)
    images = entries(*[(100, 100)] * 6)
    samples, skipped = checked_samples(annotations(images, owners, xyxy, ignore=ignore, areas=areas))
    assert skipped == [] and len(samples) == 6 and len(samples[5].target) == 0
    for number, sample in enumerate(samples):
        rows = [row for row in range(200) if owners[row] == number]
        assert sample.image_id == number and sample.path == images[number].path
        assert sample.target.labels.tolist() == rows
        assert sample.target.ignore.tolist() == ignore[rows].tolist()
        assert np.allclose(sample.target.boxes, np.minimum(xyxy[rows], 100))
        assert np.allclose(sample.areas, areas[rows])


def test_each_sample_owns_its_memory(entries):
    samples, _ = checked_samples(annotations(entries((50, 50), (50, 50)), [0, 1, 1], [[0, 0, 9, 9]] * 3))
    target = samples[1].target
    for column in (target.boxes, target.labels, target.ignore, samples[1].areas):
        assert column.untyped_storage().nbytes() == column.numel() * column.element_size()


def test_unusable_areas_give_way_to_those_of_the_boxes(entries):
    areas = [7.0, 0.0, -3.0, float("nan"), float("inf")]
    samples, _ = checked_samples(annotations(entries((50, 50)), [0] * 5, [[0, 0, 5, 4]] * 5, areas=areas))
    assert samples[0].areas.tolist() == [7, 20, 20, 20, 20]


def test_a_box_that_float32_cannot_hold_open_is_left_out(entries):
    boxes = [[1000, 1000, 1000 + 1e-6, 1010], [0, 0, 1e300, 5]]
    samples, (message,) = checked_samples(annotations(entries((2000, 2000)), [0, 0], boxes))
    assert "row 0" in message and "too thin" in message
    assert samples[0].target.boxes.tolist() == [[0, 0, 2000, 5]]


def test_a_box_at_the_far_edge_is_outside_and_one_over_it_is_not(entries):
    boxes = [[50, 0, 60, 9], [49.5, 0, 60, 9], [-5, 0, 0, 9], [-5, 0, 0.5, 9]]
    samples, skipped = checked_samples(annotations(entries((40, 50)), [0] * 4, boxes))
    assert [message[:5] for message in skipped] == ["row 0", "row 2"]
    assert all("lies wholly outside its image of 50 x 40 pixels" in message for message in skipped)
    assert samples[0].target.boxes.tolist() == [[49.5, 0, 50, 9], [0, 0, 0.5, 9]]


def test_undeclared_sizes_are_read_from_the_headers(entries):
    images = entries((9, 9), None, (8, 8), None)
    for entry, size in zip(images, [(1, 1), (30, 20), (1, 1), (5, 6)], strict=True):
        Image.new("RGB", size).save(entry.path)
    samples, _ = checked_samples(annotations(images, [1], [[0.5, 0.5, 1, 1]], relative=True))
    assert [sample.size for sample in samples] == [(9, 9), (20, 30), (8, 8), (6, 5)]
    assert samples[1].target.boxes.tolist() == [[15, 10, 30, 20]]


def test_two_images_of_one_id(entries):
    images = [entry._replace(image_id="x") for entry in entries((9, 9), (9, 9))]
    with pytest.raises(UserError, match=r"image id x stands for both .*0\.png and .*1\.png"):
        checked_samples(annotations(images, [], []))


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(480, 640, (480, 640)), ("480", "640", (480, 640)), (480.0, 640, (480, 640)), (None, 640, None), ("0", "0", None)],
)
def test_declared_sizes(height, width, size):
    assert declared_size(height, width, "here", Notes()) == size


@pytest.mark.parametrize("wrong", [-1, 3.5, "wide", "nan", float("inf"), [1], {}, 2**40, 10**400, "1e999"])
def test_declared_sizes_that_are_none(wrong):
    with pytest.raises(UserError, match=r"here: width .* and height .* not the size of an image"):
        declared_size(wrong, 640, "here", Notes())


def test_the_classes_asked_for(entries):
    def found(*names):
        count = len(names)
        columns = ([0] * count, [[0, 0, 9, 9]] * count, range(count), lambda row: f"row {row}")
        boxes = BoxColumns(*columns, ignore=[False] * count, areas=[float("nan")] * count)
        return Annotations(names, tuple(range(5, 5 + len(names))), entries((9, 9)), boxes)

    assert select_classes(found("a", "b"), None, Notes()).category_ids == (5, 6)
    chosen = select_classes(found("a", "b"), ["b", "x", "a"], Notes())
    assert (chosen.class_names, chosen.category_ids) == (("b", "x", "a"), (6, 8, 5))
    assert list(chosen.boxes.labels) == [2, 0]
    faults = []
    left = select_classes(found("a", "B ", "c"), ["c", "b"], faults.append)
    assert list(left.boxes.labels) == [0] and left.boxes.where(0) == "row 2"
    assert [fault.where for fault in faults] == ["row 0", "row 1"] and "Did you mean 'b'?" in str(faults[1])
    with pytest.raises(UserError, match="b is declared 2 times"):
        select_classes(found("a", "b", "b"), None, Notes())
