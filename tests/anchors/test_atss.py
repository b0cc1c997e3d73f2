"""ATSS on the lattice against the rule of the paper as it reads: every cell of every level, sorted by its distance."""

import random

import pytest
import torch
from tests.anchors.test_matching import (
    GOLDEN_BOXES,
    SCALE,
    every_anchor,
    make_target,
    one_thread,
    random_boxes,
    random_layout,
)
from torchvision.ops import box_iou

from retinanet.anchors.atss import ATSS
from retinanet.anchors.lattice import AnchorLattice, Grids
from retinanet.errors import UserError
from retinanet.types import Target

__all__ = ["one_thread"]


def dense(rule: ATSS, lattice: AnchorLattice, grids: Grids, target: Target) -> tuple[list[int], list[int], list[int]]:
    """Positive anchors, the boxes that they answer for, and ignored anchors: algorithm 1, line by line."""
    anchors = every_anchor(lattice, grids)
    levels, y, x, _ = lattice.locate(torch.arange(len(anchors)), grids)
    step = torch.tensor(lattice.steps)[levels]
    cells = torch.stack([x, y], dim=1)
    exact = (cells.double() + lattice.offset) * step.flip(1)  # the centre of every anchor's cell
    rounded = (cells.float() + lattice.offset) * step.flip(1)
    members = [(levels == level).nonzero()[:, 0] for level in range(len(grids))]
    winner: dict[int, tuple[float, int]] = {}
    for row, box in enumerate(target.boxes):
        sides = box[2:] - box[:2]
        if target.ignore[row] or not (sides > 0).all() or not 0 < sides.prod() < torch.inf or not len(anchors):
            continue
        distance = (exact - (box[:2].double() + box[2:].double()) / 2).square().sum(dim=1)
        candidates: list[int] = []
        for here in members:  # by number, which a stable sort keeps: the anchors of a cell are at one place
            nearest = distance[here].argsort(stable=True)[: rule.cells * lattice.num_anchors]
            candidates += here[nearest].tolist()
        overlap = box_iou(box[None], anchors[candidates])[0]
        values = overlap.double()
        needed = values.mean() + (values.std() if len(values) > 1 else 0)
        inside = ((rounded[candidates] > box[:2]) & (rounded[candidates] < box[2:])).all(dim=1)
        positive = ((values >= needed) & inside).nonzero()[:, 0].tolist()
        if not positive and rule.forced and overlap.max() > 0:
            positive = [min(range(len(candidates)), key=lambda i: (-float(values[i]), candidates[i]))]
        for i in positive:
            if (iou := float(values[i])) > winner.get(candidates[i], (-1.0, 0))[0]:
                winner[candidates[i]] = (iou, row)
    chosen = sorted(winner)
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)
    ignored: set[int] = set()
    for region in target.boxes[target.ignore]:
        sides = (torch.minimum(anchors[:, 2:], region[2:]) - torch.maximum(anchors[:, :2], region[:2])).clamp(min=0)
        ignored |= set((sides.prod(dim=1) / areas >= 0.5).nonzero()[:, 0].tolist())
    return chosen, [winner[anchor][1] for anchor in chosen], sorted(ignored - set(chosen))


def lists(match):
    return match.positive.tolist(), match.box.tolist(), match.ignored.tolist()


def random_rule(seed: int) -> ATSS:
    choose = random.Random(-seed)
    return ATSS(cells=choose.choice((1, 2, 3, 4, 5, 9, 9, 9, 16)), forced=choose.random() < 0.7)


@pytest.mark.parametrize("block", range(3 * SCALE))
def test_equals_the_dense_rule_on_random_layouts(block):
    positives = forced = 0
    for seed in range(200 * block, 200 * (block + 1)):
        rule, (_, lattice, grids, target) = random_rule(seed), random_layout(seed)
        match = rule(lattice, grids, target.boxes, target.ignore)
        assert lists(match) == dense(rule, lattice, grids, target), f"layout {seed}: {rule}, {lattice}, {grids}"
        positives, forced = positives + len(match.positive), forced + int(match.forced.sum())
    assert positives > 1000 and forced > 5, f"{positives} and {forced} hardly test anything"


def test_several_images_at_once_are_one_after_the_other():
    for seed in range(100 * SCALE):
        rule, (_, lattice, grids, target), choose = random_rule(seed), random_layout(seed), random.Random(seed)
        targets = [target]
        for _ in range(choose.randint(0, 3)):
            boxes = random_boxes(choose, (64, 80), every_anchor(lattice, grids))
            targets.append(make_target(boxes, [choose.random() < 0.2 for _ in boxes]))
        expected: tuple[list[int], list[int], list[int]] = ([], [], [])
        boxes = 0
        for number, one in enumerate(targets):
            positive, box, ignored = dense(rule, lattice, grids, one)
            expected[0].extend(anchor + number * lattice.count(grids) for anchor in positive)
            expected[1].extend(row + boxes for row in box)
            expected[2].extend(anchor + number * lattice.count(grids) for anchor in ignored)
            boxes += len(one)
        image = torch.arange(len(targets)).repeat_interleave(torch.tensor([len(one) for one in targets]))
        columns = (torch.cat([getattr(one, name) for one in targets]) for name in ("boxes", "ignore"))
        assert lists(rule(lattice, grids, *columns, image)) == expected, f"seed {seed}"


def test_a_crowded_image_that_comes_in_portions():
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(900, 2, generator=generator) * 160
    half = 2 ** (torch.rand(900, 2, generator=generator) * 6) / 2
    target = make_target(torch.cat([centre - half, centre + half], dim=1), [i % 97 == 0 for i in range(900)])
    lattice = AnchorLattice()
    grids = lattice.grids(160, 224)
    assert lists(ATSS()(lattice, grids, target.boxes, target.ignore)) == dense(ATSS(), lattice, grids, target)


def test_the_threshold_fits_the_box():
    """A box of the shape of an anchor needs a high IoU, one unlike every anchor a low one; both have positives."""
    lattice = AnchorLattice(ratios=(1.0,), scales=(1.0,))
    grids = lattice.grids(640, 640)
    boxes = torch.tensor([[292.0, 292, 356, 356], [240, 314, 400, 326]])
    match = ATSS()(lattice, grids, boxes, torch.zeros(2, dtype=torch.bool))
    assert match.needed[0] > 0.3 > 0.2 > match.needed[1] > 0
    assert (match.positives > 2).all() and not match.forced.any()


def test_every_box_has_an_anchor_and_only_a_forced_one_if_no_centre_is_inside():
    """The boxes of the golden counts: B (10 x 12) and D (40 x 5) have none by IoU 0.5."""
    target, lattice = make_target([*GOLDEN_BOXES, (97, 97, 99, 99)]), AnchorLattice()
    grids = lattice.grids(640, 640)
    match = ATSS()(lattice, grids, target.boxes, target.ignore)
    assert (match.positives > 0).all()
    assert match.forced.tolist() == [False] * 6 + [True] and match.positives[6] == 1
    without = ATSS(forced=False)(lattice, grids, target.boxes, target.ignore)
    assert without.positives[6] == 0 and torch.equal(without.positives[:6], match.positives[:6])


def test_of_two_equal_boxes_the_first_is_answered_for():
    boxes = torch.tensor([[100.0, 100, 150, 150]] * 2)
    match = ATSS()(AnchorLattice(), AnchorLattice().grids(320, 320), boxes, torch.zeros(2, dtype=torch.bool))
    assert match.positives.tolist()[1] == 0 < match.positives[0]


def test_the_record_has_the_overlaps_of_the_audit():
    lattice = AnchorLattice()
    grids, target = lattice.grids(640, 640), make_target(GOLDEN_BOXES)
    match = ATSS()(lattice, grids, target.boxes, target.ignore)
    iou = box_iou(target.boxes, every_anchor(lattice, grids))
    assert torch.equal(match.best_iou, iou.max(dim=1).values) and torch.equal(match.best_anchor, iou.argmax(dim=1))


@pytest.mark.parametrize("cells", [0, -3, 1001])
def test_a_number_of_cells_out_of_range_is_refused(cells):
    with pytest.raises(UserError, match="1 to 1000 cells"):
        ATSS(cells=cells)
