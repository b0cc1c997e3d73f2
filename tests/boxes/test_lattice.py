"""The lattice against published anchors, torchvision's generator, and a plain loop."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from retinanet.boxes.lattice import AnchorLattice
from retinanet.types import UserError

# Stride 8, cell (0, 0), as mmdetection, yhenon's and keras-retinanet, and torchvision make them.
MMDETECTION = [
    (-22.6274, -11.3137, 22.6274, 11.3137),
    (-28.5088, -14.2544, 28.5088, 14.2544),
    (-35.9188, -17.9594, 35.9188, 17.9594),
    (-16, -16, 16, 16),
    (-20.1587, -20.1587, 20.1587, 20.1587),
    (-25.3984, -25.3984, 25.3984, 25.3984),
    (-11.3137, -22.6274, 11.3137, 22.6274),
    (-14.2544, -28.5088, 14.2544, 28.5088),
    (-17.9594, -35.9188, 17.9594, 35.9188),
]
YHENON = [
    (-18.6274, -7.3137, 26.6274, 15.3137),
    (-24.5088, -10.2544, 32.5088, 18.2544),
    (-31.9188, -13.9594, 39.9188, 21.9594),
    (-12, -12, 20, 20),
    (-16.1587, -16.1587, 24.1587, 24.1587),
    (-21.3984, -21.3984, 29.3984, 29.3984),
    (-7.3137, -18.6274, 15.3137, 26.6274),
    (-10.2544, -24.5088, 18.2544, 32.5088),
    (-13.9594, -31.9188, 21.9594, 39.9188),
]
TORCHVISION = [
    (-23, -11, 23, 11),
    (-28, -14, 28, 14),
    (-35, -18, 35, 18),
    (-16, -16, 16, 16),
    (-20, -20, 20, 20),
    (-25, -25, 25, 25),
    (-11, -23, 11, 23),
    (-14, -28, 14, 28),
    (-18, -35, 18, 35),
]
ODD = AnchorLattice(strides=(7, 5, 31), sizes=(20, 3.5, 100), ratios=(0.2, 3), scales=(1, 1.7, 0.5), offset=0.3)


def every_anchor(lattice: AnchorLattice, grids: tuple[tuple[int, int], ...]) -> torch.Tensor:
    return lattice.boxes(torch.arange(lattice.count(grids)), grids)


@pytest.mark.parametrize(
    ("lattice", "golden", "tolerance"),
    [
        (AnchorLattice(offset=0), MMDETECTION, 5e-5),
        (AnchorLattice(), YHENON, 5e-5),
        (AnchorLattice(offset=0, rounded=True), TORCHVISION, 0),
    ],
    ids=["mmdetection", "yhenon", "torchvision"],
)
def test_golden_anchors_of_the_first_cell(lattice, golden, tolerance):
    boxes = lattice.boxes(torch.arange(9), lattice.grids(640, 640))
    torch.testing.assert_close(boxes, torch.tensor(golden, dtype=torch.float32), atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        (512, 512, 49_104),
        (600, 1000, 113_193),
        (608, 1024, 116_712),
        (640, 640, 76_725),
        (640, 1056, 126_675),
        (800, 1333, 200_700),
        (800, 1344, 201_600),
        (896, 1408, 236_313),
        (1024, 1024, 196_416),
    ],
)
def test_anchor_counts(height, width, count):
    lattice = AnchorLattice()
    assert lattice.count(lattice.grids(height, width)) == count


def test_grids_round_every_halving_up():
    lattice = AnchorLattice()
    assert lattice.grids(800, 1333) == ((100, 167), (50, 84), (25, 42), (13, 21), (7, 11))
    for height, width in [(1, 1), (33, 97), (127, 129), (513, 2000)]:
        level = (height, width)
        for _ in range(3):
            level = (-(-level[0] // 2), -(-level[1] // 2))
        for grid in lattice.grids(height, width):
            assert grid == level
            level = (-(-level[0] // 2), -(-level[1] // 2))


def test_rounded_lattice_is_torchvisions_bit_for_bit():
    lattice = AnchorLattice(offset=0, rounded=True)
    scales = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 5)
    grids = lattice.grids(640, 896)
    features = [torch.zeros(1, 1, *grid) for grid in grids]
    theirs = generator(ImageList(torch.zeros(1, 3, 640, 896), [(640, 896)]), features)[0]
    assert torch.equal(every_anchor(lattice, grids), theirs)


@pytest.mark.parametrize("lattice", [AnchorLattice(), ODD], ids=["paper", "odd"])
def test_flat_order_and_boxes_equal_a_plain_loop(lattice):
    grids = tuple((3 + level, 5 - level) for level in range(lattice.num_levels))
    expected = []
    for (rows, columns), stride, size in zip(grids, lattice.strides, lattice.sizes, strict=True):
        for y in range(rows):
            for x in range(columns):
                for ratio in lattice.ratios:
                    for scale in lattice.scales:
                        width, height = size * scale / ratio**0.5, size * scale * ratio**0.5
                        cx, cy = (x + lattice.offset) * stride, (y + lattice.offset) * stride
                        expected.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    torch.testing.assert_close(every_anchor(lattice, grids), torch.tensor(expected), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("grids", [((4, 6), (1, 3), (2, 1)), ((0, 5), (3, 3), (0, 0)), ((1, 1), (1, 1), (1, 1))])
def test_locate_and_index_are_inverse(grids):
    index = torch.arange(ODD.count(grids))
    level, y, x, a = ODD.locate(index, grids)
    assert torch.equal(ODD.index(level, y, x, a, grids), index)
    rows, columns = torch.tensor(grids)[level].unbind(1)
    for value, limit in ((y, rows), (x, columns), (a, torch.tensor(ODD.num_anchors))):
        assert (value >= 0).all() and (value < limit).all()
    assert len(torch.stack([level, y, x, a], dim=1).unique(dim=0)) == len(index)
    assert torch.equal(ODD.boxes(index, grids), ODD.boxes_at(level, y, x, a))


def test_templates_keep_the_area_and_the_ratio():
    lattice = AnchorLattice(ratios=(0.1, 1, 7), scales=(0.5, 3))
    sides = lattice.templates()[..., 2:] - lattice.templates()[..., :2]
    sizes = torch.tensor(lattice.sizes)[:, None] * torch.tensor((0.5, 3) * 3)
    torch.testing.assert_close(sides.prod(dim=-1), sizes**2)
    torch.testing.assert_close(sides[..., 1] / sides[..., 0], torch.tensor((0.1, 0.1, 1, 1, 7, 7)).expand(5, -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strides": (8, 0, 32, 64, 128)}, r"strides must be positive"),
        ({"ratios": ()}, r"ratios must be positive numbers and at least one"),
        ({"scales": (-1,)}, r"scales must be positive.*\(-1,\)"),
        ({"sizes": (32, float("nan"), 64, 128, 256)}, r"sizes must be positive"),
        ({"sizes": (32, 64)}, r"one size per level: 5 strides .* but 2 sizes"),
    ],
)
def test_impossible_lattices_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        AnchorLattice(**arguments)


def test_lists_are_taken_too():
    assert AnchorLattice(ratios=[0.5, 1.0, 2.0]) == AnchorLattice()
    assert hash(AnchorLattice(scales=[1])) == hash(AnchorLattice(scales=(1,)))
