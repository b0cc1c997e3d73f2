import pytest
import torch

from retinanet.data.transforms import Augment
from retinanet.errors import UserError
from retinanet.types import Target

OFF = Augment(hflip=0, vflip=0)
EVERYTHING = Augment(hflip=0.5, vflip=0.5, iou_crop=1, photometric=1, scale_jitter=(0.5, 2))


def painted(height, width, *boxes, ignore=None):
    """A black image with a rectangle of its own colour for each box; its label is the number of the box."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        image[0, y1:y2, x1:x2] = 50 + i
    ignored = torch.tensor(ignore) if ignore else torch.zeros(len(boxes), dtype=torch.bool)
    target = Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes)), ignored)
    return image, target


def extent(image, i):
    """The box of the pixels in the colour of box i; None where there is none."""
    rows, columns = (image[0] == 50 + i).nonzero(as_tuple=True)
    if not len(rows):
        return None
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


BOXES = ((2, 3, 9, 7), (20, 0, 21, 5), (11, 12, 30, 19))


@pytest.mark.parametrize(
    ("augment", "axes"),
    [
        (Augment(hflip=1), [2]),
        (Augment(hflip=0, vflip=1), [1]),
        (Augment(hflip=1, vflip=1), [1, 2]),
    ],
)
def test_flips_carry_the_boxes(augment, axes):
    image, target = painted(19, 30, *BOXES, ignore=[False, True, False])
    view, found = augment(image, target)
    assert torch.equal(view, image.flip(axes))
    assert found.boxes.tolist() == [extent(view, i) for i in range(3)]
    assert found.labels.tolist() == [0, 1, 2] and found.ignore.tolist() == [False, True, False]
    assert type(view) is torch.Tensor and type(found.boxes) is torch.Tensor and found.boxes.dtype == torch.float32


def test_chances_are_chances():
    image, target = painted(4, 5, (0, 0, 2, 2))
    torch.manual_seed(0)
    mirrored = sum(not torch.equal(Augment(hflip=0.3)(image, target)[0], image) for _ in range(300))
    assert 60 < mirrored < 120


def test_crops_cut_the_boxes():
    image, target = painted(60, 80, (5, 5, 25, 30), (40, 10, 75, 50), (10, 40, 30, 58), (60, 2, 79, 9))
    crops = 0
    for seed in range(60):
        torch.manual_seed(seed)
        view, found = Augment(hflip=0.5, vflip=0.5, iou_crop=1)(image, target)
        crops += view.shape != image.shape
        assert len(found)
        assert [row.tolist() for row in found.boxes] == [extent(view, i) for i in found.labels.tolist()]
        for gone in set(range(4)) - set(found.labels.tolist()):  # its centre is outside: at most half a side is left
            left, whole = extent(view, gone), target.boxes[gone].tolist()
            if left:
                sides = [(left[i + 2] - left[i]) / (whole[i + 2] - whole[i]) for i in (0, 1)]
                assert min(sides) <= 0.5
    assert crops > 30


def test_flags_and_labels_stay_with_their_boxes():
    """Boxes whose width says what they are: whatever is dropped or turned, the rows stay whole."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(40, 2, generator=generator) * 60
    labels = torch.randint(1, 9, (40,), generator=generator)
    ignore = torch.rand(40, generator=generator) < 0.4
    sides = torch.stack([labels * 2.0, torch.where(ignore, 3.0, 5.0)], dim=1)
    target = Target(torch.cat([corners, corners + sides], 1), labels, ignore)
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    dropped = 0
    for seed in range(20):
        torch.manual_seed(seed)
        view, found = EVERYTHING(image, target)
        boxes = found.boxes
        whole = (boxes[:, :2] > 0).all(1) & (boxes[:, 2] < view.shape[2]) & (boxes[:, 3] < view.shape[1])
        sides = boxes[:, 2:] - boxes[:, :2]
        torch.testing.assert_close(sides[whole, 0], found.labels[whole] * 2.0, rtol=0, atol=1e-4)
        assert ((sides[whole, 1] - 3).abs() < 1e-4).tolist() == found.ignore[whole].tolist()
        dropped += 40 - len(found)
    assert dropped > 100


def test_degenerate_boxes_are_dropped():
    boxes = torch.tensor([[1.0, 1, 5, 5], [2, 2, 2.5, 9], [3, 3, 9, 3], [4, 4, 7, 4.99], [5, 5, 6, 6]])
    target = Target(boxes, torch.arange(5), torch.tensor([True, False, False, True, False]))
    image = torch.zeros(3, 10, 10, dtype=torch.uint8)
    _, found = OFF(image, target)
    assert found.labels.tolist() == [0, 4] and found.ignore.tolist() == [True, False]
    _, found = Augment(hflip=0, min_side=4)(image, target)
    assert found.labels.tolist() == [0]
    _, found = Augment(hflip=0, min_side=0)(image, target)
    assert found.labels.tolist() == [0, 1, 3, 4]


def test_what_a_crop_cuts_off_is_dropped_even_without_a_least_side():
    image, target = painted(40, 40, (0, 0, 10, 10), (30, 30, 40, 40))
    augment, counts = Augment(hflip=0, iou_crop=1, min_side=0), set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, found = augment(image, target)
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        counts.add(len(found))
    assert counts == {1, 2}


def test_switched_off_is_the_identity():
    image, target = painted(19, 30, *BOXES, ignore=[True, False, True])
    state = torch.get_rng_state()
    view, found = OFF(image, target)
    assert torch.equal(view, image) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.boxes, target.boxes) and torch.equal(found.labels, target.labels)
    assert torch.equal(found.ignore, target.ignore) and OFF.draw_scale() == 1.0
    assert torch.equal(torch.get_rng_state(), state)


def test_the_input_is_left_as_it_was():
    image, target = painted(19, 30, *BOXES)
    kept, boxes = image.clone(), target.boxes.clone()
    for seed in range(10):
        torch.manual_seed(seed)
        EVERYTHING(image, target)
    assert torch.equal(image, kept) and torch.equal(target.boxes, boxes)


def test_a_seed_decides_everything():
    image, target = painted(40, 50, *BOXES)

    def view(seed):
        torch.manual_seed(seed)
        return (*EVERYTHING(image, target), EVERYTHING.draw_scale())

    views = [(view(seed), view(seed)) for seed in range(8)]
    for (pixels, found, scale), (pixels2, found2, scale2) in views:
        assert torch.equal(pixels, pixels2) and torch.equal(found.boxes, found2.boxes) and scale == scale2
    assert len({one[2] for one, _ in views}) == 8


@pytest.mark.parametrize(
    "augment",
    [Augment(hflip=1), Augment(vflip=1), Augment(iou_crop=1), Augment(photometric=1), EVERYTHING],
    ids=["hflip", "vflip", "iou_crop", "photometric", "everything"],
)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 3), (4, 4), (20, 30)])
def test_any_image(augment, size):
    """Without boxes, and with one that covers it."""
    height, width = size
    for boxes in ((), ((0, 0, width, height),)):
        image, target = painted(height, width, *boxes)
        for seed in range(6):
            torch.manual_seed(seed)
            view, found = augment(image, target)
            assert view.dtype == torch.uint8 and view.shape[0] == 3 and min(view.shape) >= 1
            assert found.boxes.shape == (len(found), 4) and len(found) == len(found.ignore) == len(boxes)
            for x1, y1, x2, y2 in found.boxes.tolist():
                assert 0 <= x1 < x2 <= view.shape[2] and 0 <= y1 < y2 <= view.shape[1]


def test_photometric_changes_colours_only():
    image = torch.zeros(3, 8, 12, dtype=torch.uint8)
    for channel in range(3):
        image[channel, :, 4 * channel : 4 * channel + 4] = 180  # red, green, blue
    target = Target(torch.tensor([[1.0, 2, 5, 6]]), torch.tensor([3]), torch.tensor([False]))
    changed = 0
    for seed in range(40):
        torch.manual_seed(seed)
        view, found = Augment(hflip=0, photometric=1)(image, target)
        changed += not torch.equal(view, image)
        assert found.boxes.tolist() == target.boxes.tolist()
        assert view.shape == image.shape and view.dtype == torch.uint8
        # Red stays red: classes may differ in nothing but their colour.
        assert view[:, 0, [0, 4, 8]].int().argmax(0).tolist() == [0, 1, 2]
    assert changed == 40
    torch.manual_seed(0)
    untouched = sum(torch.equal(Augment(hflip=0, photometric=0.5)(image, target)[0], image) for _ in range(60))
    assert 15 < untouched < 45


def test_scale_jitter_draws_from_its_range():
    augment = Augment(scale_jitter=(0.5, 2.0))
    torch.manual_seed(0)
    drawn = torch.tensor([augment.draw_scale() for _ in range(500)])
    assert drawn.min() >= 0.5 and drawn.max() <= 2.0
    assert drawn.mean().item() == pytest.approx(1.25, abs=0.06) and drawn.std().item() == pytest.approx(0.433, abs=0.03)
    assert Augment(scale_jitter=(0.7, 0.7)).draw_scale() == 0.7


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"hflip": 1.5}, "hflip is a chance between 0 and 1, got 1.5"),
        ({"vflip": -0.1}, "vflip is a chance"),
        ({"iou_crop": 2}, "iou_crop is a chance"),
        ({"photometric": float("nan")}, "photometric is a chance"),
        ({"scale_jitter": (0, 1)}, r"two factors, 0 < least <= most, got \(0, 1\)"),
        ({"scale_jitter": (2, 1)}, "two factors"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(UserError, match=match):
        Augment(**options)
