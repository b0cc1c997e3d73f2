"""Matching on the lattice against the dense rule: all boxes by all anchors, written down as it reads."""

import os
import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from retinanet.anchors.lattice import AnchorLattice, Grids, LatticeCompat
from retinanet.anchors.matching import Match, Matcher
from retinanet.errors import UserError
from retinanet.types import Target

NEGATIVE, IGNORED, POSITIVE = 0, 1, 2
SCALE = int(os.environ.get("TEST_SCALE", "1"))  # so many times as many random layouts


@pytest.fixture(autouse=True)
def one_thread():
    """Thousands of small tensors: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def every_anchor(lattice: AnchorLattice, grids: Grids) -> Tensor:
    return lattice.boxes(torch.arange(lattice.count(grids)), grids)


class Expected(NamedTuple):
    """What the dense rule says, by the names that a match has for it."""

    positive: Tensor
    box: Tensor
    ignored: Tensor
    best_iou: Tensor
    best_anchor: Tensor
    best_level: Tensor
    positives: Tensor


def dense(matcher: Matcher, lattice: AnchorLattice, grids: Grids, target: Target) -> Expected:
    """The rule as a matrix."""
    anchors, boxes = every_anchor(lattice, grids), len(target)
    state, box = torch.full((len(anchors),), NEGATIVE), torch.full((len(anchors),), -1)
    best_iou, best_anchor = torch.zeros(boxes), torch.full((boxes,), -1)
    rows = (~target.ignore).nonzero().flatten()
    if len(rows) and len(anchors):
        iou = box_iou(target.boxes[rows], anchors).nan_to_num(0)
        best_iou[rows] = iou.max(dim=1).values
        best_anchor[rows] = (iou == best_iou[rows][:, None]).int().argmax(dim=1)  # of several equal ones: the first
        best_anchor[best_iou == 0] = -1
        best = iou.max(dim=0).values
        box = rows[(iou == best).int().argmax(dim=0)]
        state[best >= matcher.background] = IGNORED
        state[best >= matcher.foreground] = POSITIVE
        for row, overlaps in zip(rows, iou, strict=True):
            if matcher.forced != "off" and overlaps.max() > 0:
                reached = best if matcher.forced == "argmax" else overlaps
                theirs = (overlaps == overlaps.max()) & (reached >= matcher.forced_iou)
                state[theirs] = POSITIVE
                if matcher.forced == "reassign":
                    box[theirs] = row
    areas = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    for region in target.boxes[target.ignore]:
        sides = (torch.minimum(anchors[:, 2:], region[2:]) - torch.maximum(anchors[:, :2], region[:2])).clamp(min=0)
        state[(sides.prod(dim=1) / areas >= 0.5) & (state == NEGATIVE)] = IGNORED
    positive = (state == POSITIVE).nonzero().flatten()
    level = torch.arange(len(grids)).repeat_interleave(torch.tensor([lattice.count([grid]) for grid in grids]))
    return Expected(
        positive,
        box[positive],
        (state == IGNORED).nonzero().flatten(),
        best_iou,
        best_anchor,
        torch.tensor([-1 if anchor < 0 else level[anchor] for anchor in best_anchor.tolist()], dtype=torch.int64),
        box[positive].bincount(minlength=boxes),
    )


def dense_of_images(matcher: Matcher, lattice: AnchorLattice, grids: Grids, targets: list[Target]) -> Expected:
    """Image by image, with the boxes and the anchors of each counted on from those of the one before."""
    parts, boxes = [], 0
    for number, target in enumerate(targets):
        part, anchors = dense(matcher, lattice, grids, target), number * lattice.count(grids)
        numbered = part.best_anchor.where(part.best_anchor < 0, part.best_anchor + anchors)
        parts.append(
            part._replace(
                positive=part.positive + anchors,
                box=part.box + boxes,
                ignored=part.ignored + anchors,
                best_anchor=numbered,
            )
        )
        boxes += len(target)
    return Expected(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def match_of(matcher: Matcher, lattice: AnchorLattice, grids: Grids, target: Target) -> Match:
    return matcher(lattice, grids, target.boxes, target.ignore)


def equal(match: Match, other: Match | Expected) -> bool:
    return all(torch.equal(getattr(match, name), getattr(other, name)) for name in Expected._fields)


def make_target(boxes, ignore=None) -> Target:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore, dtype=torch.bool)
    return Target(boxes, torch.zeros(len(boxes), dtype=torch.int64), ignore)


# Random layouts ------------------------------------------------------------------------------------------------------

STRANGE = [
    [-1e4, -1e4, 1e4, 1e4],
    [-1e10, -1e10, 1e10, 1e10],
    [0, 0, 3e38, 3e38],
    [5, 5, 5, 9],
    [9, 9, 5, 5],
    [3, 3, 3 + 1e-6, 3 + 1e-6],
    [1e-20, 1e-20, 3e-20, 3e-20],
    [0, 0, 1e-19, 1e-19],
    [0, 0, 1.2e-21, 1.2e-21],
    [20, 20, 20.5, 20 + 1e-6],
    [0, 0, 60, 1e-3],
    [1e6, 1e6, 1e6 + 10, 1e6 + 10],
    [0, 0, float("inf"), 5],
    [float("nan")] * 4,
]


def random_lattice(choose: random.Random) -> AnchorLattice:
    levels = choose.randint(1, 4)
    strides = tuple(8 * 2**level for level in range(levels))
    sizes = tuple(4.0 * stride for stride in strides)
    if choose.random() < 0.6:
        strides = tuple(choose.choice((5, 7, 8, 9, 13, 16, 31, 64, 100)) for _ in range(levels))
        sizes = tuple(choose.choice((0.5, 1, 2.3, 4, 8, 17.3, 32, 100, 300)) for _ in range(levels))
    return AnchorLattice(
        strides=strides,
        sizes=sizes,
        ratios=choose.choice(((0.5, 1, 2), (1,), (0.01, 100), (0.1, 0.3, 1, 3, 9), (1, 1))),
        scales=choose.choice(((1, 2 ** (1 / 3), 2 ** (2 / 3)), (1,), (0.3, 1))),
        offset=choose.choice((0, 0.5, 0.5, 0.3, -1.0)),
        compat=LatticeCompat(
            rounding=choose.choice(("none", "none", "corners", "cell")),
            inclusive=choose.random() < 0.3,
            floor_strides=choose.random() < 0.4,
        ),
    )


def random_boxes(choose: random.Random, size: tuple[int, int], anchors: Tensor) -> Tensor:
    """Tiny to huge, flat to tall, inside and outside, duplicates, anchors themselves, and strange ones."""
    generator = torch.Generator().manual_seed(choose.randrange(2**31))
    count, extent = choose.choice((0, 1, 2, 3, 5, 8, 13)), torch.tensor([size[1], size[0]])
    centre = (torch.rand(count, 2, generator=generator) * 1.4 - 0.2) * extent
    decades = torch.rand(count, 2, generator=generator) * choose.choice((1, 1, 2, 3, 4))
    half = 0.5 * 10 ** (decades + choose.choice((-3, -1, 0, 0.5, 1)))
    boxes = torch.cat([centre - half, centre + half], dim=1)
    if choose.random() < 0.4:
        boxes = boxes.round()
    if choose.random() < 0.3:
        boxes = boxes.clamp(min=torch.zeros(4), max=extent.repeat(2))
    if count and len(anchors) and choose.random() < 0.4:
        copies = choose.randint(1, count)
        boxes[:copies] = anchors[torch.randint(len(anchors), (copies,), generator=generator)]
    if count > 1 and choose.random() < 0.3:
        boxes[-1] = boxes[0]
    if count and choose.random() < 0.15:
        boxes[choose.randrange(count)] = torch.tensor(choose.choice(STRANGE))
    return boxes


def random_layout(seed: int) -> tuple[Matcher, AnchorLattice, Grids, Target]:
    choose = random.Random(seed)
    foreground, background = choose.choice(((0.5, 0.4), (0.5, 0.4), (0.5, 0.5), (0.7, 0.3), (1.0, 0.01), (0.05, 0.01)))
    forced = choose.choice(("argmax", "argmax", "reassign", "off"))
    lattice, size = random_lattice(choose), choose.choice(((64, 64), (33, 97), (1, 1), (120, 30), (80, 80)))
    grids, lattice = lattice.grids(*size), lattice.over(*size)
    if choose.random() < 0.2:
        grids = tuple((choose.randint(0, 9), choose.randint(0, 9)) for _ in grids)
    boxes = random_boxes(choose, size, every_anchor(lattice, grids))
    crowded = choose.choice((0, 0, 0.3))
    target = make_target(boxes, [choose.random() < crowded for _ in boxes])
    forced_iou = choose.choice((0, 0, 0.2, 0.45, 0.9))
    return Matcher(foreground, background, forced, forced_iou), lattice, grids, target


@pytest.mark.parametrize("block", range(4 * SCALE))
def test_equals_the_dense_rule_on_random_layouts(block):
    positives = ignored = 0
    for seed in range(250 * block, 250 * (block + 1)):
        layout = random_layout(seed)
        expected = dense(*layout)
        assert equal(match_of(*layout), expected), f"random_layout({seed}) differs: {layout}"
        positives, ignored = positives + len(expected.positive), ignored + len(expected.ignored)
    assert positives > 2000 and ignored > 2000, f"{positives} and {ignored} hardly test anything"


@pytest.mark.parametrize("block", range(2 * SCALE))
def test_several_images_at_once_are_one_after_the_other(block):
    positives = 0
    for seed in range(100 * block, 100 * (block + 1)):
        matcher, lattice, grids, target = random_layout(seed)
        choose = random.Random(-seed - 1)
        targets = [target]
        for _ in range(choose.randint(0, 4)):
            boxes = random_boxes(choose, (64, 80), every_anchor(lattice, grids))
            targets.append(make_target(boxes, [choose.random() < 0.2 for _ in boxes]))
        choose.shuffle(targets)
        boxes, ignore = (torch.cat([getattr(one, name) for one in targets]) for name in ("boxes", "ignore"))
        image = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(one) for one in targets]))
        expected = dense_of_images(matcher, lattice, grids, targets)
        assert equal(matcher(lattice, grids, boxes, ignore, image), expected), f"seed {seed}"
        positives += len(expected.positive)
    assert positives > 2000


@pytest.mark.parametrize("forced", ["argmax", "reassign", "off"])
def test_equals_the_dense_rule_on_a_crowded_image(forced):
    """Real lattices and so many boxes that they come in several portions."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(800, 2, generator=generator) * 160
    half = 2 ** (torch.rand(800, 2, generator=generator) * 6) / 2
    target = make_target(torch.cat([centre - half, centre + half], dim=1), [i % 97 == 0 for i in range(800)])
    matcher = Matcher(forced=forced)
    floored = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners", floor_strides=True)).over(160, 224)
    assert floored.steps[3:] == ((53, 56), (80, 112))
    for lattice in (AnchorLattice(), floored, AnchorLattice(compat=LatticeCompat(rounding="cell", inclusive=True))):
        grids = lattice.grids(160, 224)
        assert equal(match_of(matcher, lattice, grids, target), dense(matcher, lattice, grids, target))


# Golden counts -------------------------------------------------------------------------------------------------------

GOLDEN_BOXES = [
    (100, 100, 150, 180),
    (300, 200, 310, 212),
    (0, 0, 640, 640),
    (50, 400, 90, 405),
    (310, 210, 420, 330),
    (320, 215, 430, 335),
]


@pytest.mark.parametrize(
    ("lattice", "forced", "positives", "ignored", "per_box"),
    [
        (AnchorLattice(offset=0), "off", 100, 239, None),
        (AnchorLattice(offset=0), "argmax", 107, 239, [31, 5, 20, 2, 29, 20]),
        (AnchorLattice(offset=0), "reassign", 107, 239, [31, 5, 20, 2, 28, 21]),
        (AnchorLattice(offset=0.5), "off", 124, 230, None),
        (AnchorLattice(offset=0.5), "argmax", 130, 230, [30, 4, 41, 2, 32, 21]),
        (AnchorLattice(offset=0.5), "reassign", 130, 230, [30, 4, 41, 2, 31, 22]),
        (AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners")), "argmax", 111, 224, [31, 9, 20, 2, 29, 20]),
    ],
)
def test_golden_counts(lattice, forced, positives, ignored, per_box):
    match = match_of(Matcher(forced=forced), lattice, lattice.grids(640, 640), make_target(GOLDEN_BOXES))
    assert (len(match.positive), len(match.ignored)) == (positives, ignored)
    counts = match.box.bincount(minlength=6).tolist()
    if forced == "off":
        assert counts[1] == counts[3] == 0, "tiny and extreme boxes get no anchor without forced matches"
    else:
        assert counts == per_box


@pytest.mark.parametrize(
    ("forced_iou", "positives", "ignored"),
    [(0, 107, 239), (0.1, 107, 239), (0.15, 102, 239), (0.4, 100, 239), (1, 100, 239)],
)
def test_golden_counts_of_detectrons_forced_match(forced_iou, positives, ignored):
    """The best IoUs of the boxes B and D are 0.1172 and 0.1953, with five and two anchors; 0.4 is Detectron's."""
    lattice, target = AnchorLattice(offset=0), make_target(GOLDEN_BOXES)
    match = match_of(Matcher(forced_iou=forced_iou), lattice, lattice.grids(640, 640), target)
    assert (len(match.positive), len(match.ignored)) == (positives, ignored)
    if forced_iou >= 0.4:
        assert equal(match, match_of(Matcher(forced="off"), lattice, lattice.grids(640, 640), target))


def test_a_forced_anchor_below_forced_iou_is_what_its_iou_says():
    """IoU 0.45, 0.3 and 0.1 with the anchors 0, 2 and 8, each the best that its box has."""
    boxes = [[0, 0, 32, 14.4], [64, 0, 96, 9.6], [0, 64, 32, 67.2]]
    for forced_iou, positive, ignored in (
        (0, [0, 2, 8], []),
        (0.2, [0, 2], []),
        (0.4, [0], []),  # in the band between the thresholds, and positive nevertheless
        (0.48, [], [0]),
    ):
        match = match_of(Matcher(forced_iou=forced_iou), ONE, GRID, make_target(boxes))
        assert (match.positive.tolist(), match.ignored.tolist()) == (positive, ignored), forced_iou


def test_forced_iou_asks_for_the_best_box_of_an_anchor():
    """A tiny box forces anchor 0, which overlaps another box by 10/54; that one has a better anchor of its own."""
    target = make_target([[0, 0, 3, 3], [0, 22, 32, 54]])
    match = match_of(Matcher(forced_iou=0.18), ONE, GRID, target)
    assert (match.positive.tolist(), match.box.tolist()) == ([0, 4], [1, 1])
    match = match_of(Matcher(forced_iou=0.19), ONE, GRID, target)
    assert (match.positive.tolist(), match.box.tolist(), match.ignored.tolist()) == ([4], [1], [])


@pytest.mark.parametrize("size", [(640, 640), (800, 1088)])
def test_equals_torchvisions_matcher(size):
    lattice = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners", floor_strides=True)).over(*size)
    grids, target = lattice.grids(*size), make_target([*GOLDEN_BOXES, (640, 320, 1088, 800), (330, 10, 800, 700)])
    theirs = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)(
        box_iou(target.boxes, every_anchor(lattice, grids))
    )
    ours = match_of(Matcher(), lattice, grids, target)
    assert torch.equal(ours.positive, (theirs >= 0).nonzero().flatten())
    assert torch.equal(ours.box, theirs[theirs >= 0])
    assert torch.equal(ours.ignored, (theirs == TorchvisionMatcher.BETWEEN_THRESHOLDS).nonzero().flatten())


# Single rules --------------------------------------------------------------------------------------------------------

ONE = AnchorLattice(strides=(32,), sizes=(32,), ratios=(1,), scales=(1,))  # cell (y, x) is the anchor
GRID = ((4, 4),)


@pytest.mark.parametrize("forced", ["argmax", "reassign"])
def test_a_box_that_overlaps_nothing_forces_nothing(forced):
    outside = [1000, 1000, 1010, 1010]
    alone = match_of(Matcher(forced=forced), ONE, GRID, make_target([outside]))
    assert len(alone.positive) == len(alone.ignored) == 0
    match = match_of(Matcher(forced=forced), ONE, GRID, make_target([outside, [0, 0, 32, 32], [5, 5, 5, 5]]))
    assert match.positive.tolist() == [0] and match.box.tolist() == [1]


def test_thresholds_include_their_value():
    half, quarter = [0, 0, 32, 16], [64, 64, 80, 80]
    matcher = Matcher(foreground=0.5, background=0.25, forced="off")
    match = match_of(matcher, ONE, GRID, make_target([half, quarter]))
    assert match.positive.tolist() == [0] and match.ignored.tolist() == [10]
    above = Matcher(foreground=0.5 + 1e-6, background=0.25 + 1e-6, forced="off")
    match = match_of(above, ONE, GRID, make_target([half, quarter]))
    assert match.positive.tolist() == [] and match.ignored.tolist() == [0]


def test_a_forced_anchor_that_prefers_another_box():
    """Anchor 0 is the only one that either box touches; the first fits it well, the second badly."""
    boxes = [[0, 0, 32, 30], [0, 0, 4, 4]]
    for forced, owner in (("off", 0), ("argmax", 0), ("reassign", 1)):
        match = match_of(Matcher(forced=forced), ONE, GRID, make_target(boxes))
        assert (match.positive.tolist(), match.box.tolist()) == ([0], [owner])
    for forced, owner in (("argmax", 1), ("reassign", 1)):  # the same in the other order, both below the threshold
        match = match_of(Matcher(forced=forced), ONE, GRID, make_target([[0, 0, 3, 3], [0, 0, 4, 4]]))
        assert (match.positive.tolist(), match.box.tolist()) == ([0], [owner])


def test_all_tied_best_anchors_are_forced():
    between = [28, 28, 36, 36]  # a quarter of it in each of four anchors
    match = match_of(Matcher(), ONE, GRID, make_target([between]))
    assert match.positive.tolist() == [0, 1, 4, 5]


def test_duplicates_go_to_the_first_or_the_last():
    boxes = [[0, 0, 32, 32]] * 3
    assert match_of(Matcher(forced="argmax"), ONE, GRID, make_target(boxes)).box.tolist() == [0]
    assert match_of(Matcher(forced="reassign"), ONE, GRID, make_target(boxes)).box.tolist() == [2]


def test_ignore_regions():
    region = [0, 0, 128, 48]  # all of the first row of anchors, and just half of the second
    match = match_of(Matcher(), ONE, GRID, make_target([region, [32, 0, 64, 32]], [True, False]))
    assert match.positive.tolist() == [1], "positives win"
    assert match.box.tolist() == [1], "counted in rows of the target, ignore regions included"
    assert match.ignored.tolist() == [0, 2, 3, 4, 5, 6, 7]
    smaller = match_of(Matcher(), ONE, GRID, make_target([[0, 0, 128, 47.9]], [True]))
    assert smaller.ignored.tolist() == [0, 1, 2, 3] and len(smaller.positive) == 0


def test_an_image_without_boxes_is_all_negative():
    lattice = AnchorLattice()
    match = match_of(Matcher(), lattice, lattice.grids(640, 640), Target.empty())
    for part in (match.positive, match.box, match.ignored):
        assert part.dtype == torch.int64 and part.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"foreground": 0.3}, "0 < background <= foreground <= 1"),
        ({"background": 0}, "got background 0 and foreground 0.5"),
        ({"foreground": 1.5}, "foreground 1.5"),
        ({"forced_iou": -0.1}, "forced_iou is an IoU between 0 and 1, got -0.1"),
        ({"forced_iou": 1.01}, "forced_iou is an IoU between 0 and 1, got 1.01"),
        ({"forced": "best"}, "'argmax', 'reassign' or 'off', got 'best'"),
    ],
)
def test_impossible_matchers_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Matcher(**arguments)


# Cost ----------------------------------------------------------------------------------------------------------------


class Elements(TorchDispatchMode):
    """Counts the elements of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and not func.is_view]
        self.largest, self.total = max([self.largest, *made]), self.total + sum(made)
        return out


def scattered(count: int, size: tuple[int, int]) -> Target:
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    half = 2 ** (torch.rand(count, 2, generator=generator) * 4 + 2)
    return make_target(torch.cat([centre - half, centre + half], dim=1))


def cost(count: int, size: tuple[int, int]) -> Elements:
    lattice, target = AnchorLattice(), scattered(count, (800, 1344))
    lattice.templates()
    with Elements() as elements:
        match_of(Matcher(), lattice, lattice.grids(*size), target)
    return elements


def test_cost_does_not_depend_on_the_number_of_anchors():
    small, large = cost(300, (800, 1344)), cost(300, (6400, 10752))  # 64 times the anchors under the same boxes
    anchors = AnchorLattice().count(AnchorLattice().grids(6400, 10752))
    assert large.largest < anchors / 50
    assert large.largest <= 1.1 * small.largest
    assert large.total <= 1.1 * small.total


def test_cost_grows_with_the_boxes():
    few, many = cost(250, (800, 1344)), cost(1000, (800, 1344))
    assert many.largest < 201_600, "neither (A, 4) nor (M, A), not even (A,)"
    assert many.total < 6 * few.total
