"""The lattice against published anchors, torchvision's generator, and a plain loop."""

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError

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
# Detectron and odtk name the last pixel of an anchor; the rows here end one further, where it ends.
DETECTRON = [
    (-18, -8, 26, 16),
    (-23.7183, -11.1191, 31.7183, 19.1191),
    (-30.9228, -15.0488, 38.9228, 23.0488),
    (-12, -12, 20, 20),
    (-16.1587, -16.1587, 24.1587, 24.1587),
    (-21.3984, -21.3984, 29.3984, 29.3984),
    (-8, -20, 16, 28),
    (-11.1191, -26.2381, 19.1191, 34.2381),
    (-15.0488, -34.0976, 23.0488, 42.0976),
]
ODTK = [(x1, y1, x2 + 1, y2 + 1) for x1, y1, x2, y2 in YHENON]
ODD = AnchorLattice(strides=(7, 5, 31), sizes=(20, 3.5, 100), ratios=(0.2, 3), scales=(1, 1.7, 0.5), offset=0.3)


def every_anchor(lattice: AnchorLattice, grids: tuple[tuple[int, int], ...]) -> torch.Tensor:
    return lattice.boxes(torch.arange(lattice.count(grids)), grids)


@pytest.mark.parametrize(
    ("lattice", "golden", "tolerance"),
    [
        (AnchorLattice(offset=0), MMDETECTION, 5e-5),
        (AnchorLattice(), YHENON, 5e-5),
        (AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners")), TORCHVISION, 0),
        (AnchorLattice(compat=LatticeCompat(rounding="cell")), DETECTRON, 5e-5),
        (AnchorLattice(compat=LatticeCompat(inclusive=True)), ODTK, 5e-5),
    ],
    ids=["mmdetection", "yhenon", "torchvision", "detectron", "odtk"],
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


def torchvisions(grids, height, width):
    """What torchvision's generator makes over these grids, with the sizes of its RetinaNet."""
    scales = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(scales, ((0.5, 1.0, 2.0),) * 5)
    features = [torch.zeros(1, 1, *grid) for grid in grids]
    return generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), features)[0]


def test_rounded_lattice_is_torchvisions_bit_for_bit():
    lattice = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners"))
    grids = lattice.grids(640, 896)
    assert torch.equal(every_anchor(lattice, grids), torchvisions(grids, 640, 896))


@pytest.mark.parametrize(
    ("height", "width", "p6", "p7"),
    [
        (640, 640, (64, 64), (128, 128)),
        (896, 1408, (64, 64), (128, 128)),
        (640, 1056, (64, 62), (128, 117)),
        (800, 1088, (61, 64), (114, 120)),
        (800, 1344, (61, 64), (114, 122)),
    ],
)
def test_floored_strides_are_torchvisions_bit_for_bit(height, width, p6, p7):
    lattice = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners", floor_strides=True))
    settled, grids = lattice.over(height, width), lattice.grids(height, width)
    assert settled.compat.spacing == settled.steps == ((8, 8), (16, 16), (32, 32), p6, p7)
    assert not settled.compat.floor_strides and settled.over(height, width) is settled
    assert settled.grids(height, width) == grids, "the grids are those of the strides"
    expected = torchvisions(grids, height, width)
    assert torch.equal(every_anchor(settled, grids), expected)
    level, y, x, a = settled.locate(torch.arange(len(expected)), grids)
    assert torch.equal(settled.index(level, y, x, a, grids), torch.arange(len(expected)))
    assert torch.equal(settled.boxes_at(level, y, x, a), expected)
    plain = every_anchor(AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners")), grids)
    assert torch.equal(plain, expected) == (p6 == (64, 64) and p7 == (128, 128))


def test_floored_strides_have_to_be_settled():
    lattice = AnchorLattice(compat=LatticeCompat(floor_strides=True))
    with pytest.raises(AssertionError, match=r"ask over\(height, width\)"):
        lattice.boxes(torch.arange(3), lattice.grids(640, 640))
    plain = AnchorLattice()
    assert plain.over(800, 1344) is plain and plain.steps == tuple((s, s) for s in plain.strides)


def test_cells_are_rounded_as_detectron_rounds_them():
    """Against Detectron's recipe: round a cell's width, then the height of that, and scale both up."""
    lattice = AnchorLattice(ratios=(0.3, 1.0, 2.0, 3.5), compat=LatticeCompat(rounding="cell"))
    expected = []
    for stride, size in zip(lattice.strides, lattice.sizes, strict=True):
        for ratio in lattice.ratios:
            width = round((stride * stride / ratio) ** 0.5)
            height = round(width * ratio)
            for scale in lattice.scales:
                w, h = width * scale * size / stride, height * scale * size / stride
                expected.append((-w / 2, -h / 2, w / 2, h / 2))
    torch.testing.assert_close(lattice.templates().flatten(0, 1), torch.tensor(expected), atol=1e-4, rtol=1e-6)


@pytest.mark.parametrize("rounding", ["none", "corners", "cell"])
def test_inclusive_sides_are_a_pixel_longer(rounding):
    plain, longer = (
        AnchorLattice(compat=LatticeCompat(rounding=rounding, inclusive=inclusive)) for inclusive in (False, True)
    )
    grids = plain.grids(100, 150)
    gap = every_anchor(longer, grids).double() - every_anchor(plain, grids).double()
    torch.testing.assert_close(gap, torch.tensor([0.0, 0, 1, 1]).double().expand_as(gap), atol=1e-4, rtol=0)


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


def test_an_unknown_rounding_is_refused():
    with pytest.raises(UserError, match=r"rounding of anchors is none, corners or cell, got 'floor'"):
        LatticeCompat(rounding="floor")


def test_lists_are_taken_too():
    assert AnchorLattice(ratios=[0.5, 1.0, 2.0]) == AnchorLattice()
    assert hash(AnchorLattice(scales=[1])) == hash(AnchorLattice(scales=(1,)))
