from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.anchors.matching import Matcher
from retinanet.errors import UserError
from retinanet.losses.box import L1, GIoU, SmoothL1
from retinanet.losses.detection import DetectionLoss
from retinanet.losses.focal import FocalLoss
from retinanet.losses.ohem import OHEM
from retinanet.types import RawOutput, Target


def target(*rows):
    """Rows (x1, y1, x2, y2, label) or, for an ignore region, (x1, y1, x2, y2, label, True)."""
    if not rows:
        return Target.empty()
    boxes = torch.tensor([row[:4] for row in rows], dtype=torch.float32)
    labels = torch.tensor([row[4] for row in rows])
    return Target(boxes, labels, torch.tensor([len(row) > 5 for row in rows]))


# Small and large boxes in both images, off the diagonal: levels, images, x and y cannot be confused unseen.
TARGETS = [
    target((20, 1, 38, 17, 1), (4, 8, 24, 47, 3), (2, 30, 16, 41, 0)),
    target((1, 16, 34, 44, 2), (22, 2, 37, 20, 1)),
]


def plain(raw):
    """Heads as torchvision flattens them: logits (N, anchors, K) and deltas (N, anchors, 4), in flat order."""

    def flatten(levels, channels):
        anchors = raw.lattice.num_anchors
        rows = [level.unflatten(1, (anchors, channels)).permute(0, 3, 4, 1, 2) for level in levels]
        return torch.cat([row.flatten(1, 3) for row in rows], dim=1)

    return flatten(raw.logits, raw.num_classes), flatten(raw.deltas, 4)


def textbook(raw, targets, giou=False):
    """Sums of both losses, image by image over one-hot targets, with torchvision's functions, and the positives."""
    logits, deltas = plain(raw)
    classification, box, positives = 0, 0, 0
    every = raw.lattice.boxes(torch.arange(raw.lattice.count(raw.grids)), raw.grids)
    for image, one in enumerate(targets):
        match = Matcher()(raw.lattice, raw.grids, one.boxes, one.ignore)
        wanted = torch.zeros_like(logits[image])
        wanted[match.positive, one.labels[match.box]] = 1
        counted = torch.ones(len(wanted), dtype=torch.bool)
        counted[match.ignored] = False
        classification = classification + torchvision_focal_loss(
            logits[image][counted], wanted[counted], reduction="sum"
        )
        said, anchors, boxes = deltas[image][match.positive], every[match.positive], one.boxes[match.box]
        if giou:
            box = box + generalized_box_iou_loss(raw.coder.decode(said, anchors), boxes, reduction="sum")
        else:
            gap = (said - raw.coder.encode(boxes, anchors)).abs()
            box = box + torch.where(gap < 1 / 9, 4.5 * gap**2, gap - 1 / 18).sum()
        positives += len(match.positive)
    return classification, box, positives


@pytest.fixture
def criterion():
    return DetectionLoss()


def flat_keys(raw, index, level):
    """Rows (n, a, y, x) of a level as pairs of image and flat index."""
    n, a, y, x = index.unbind(1)
    return list(zip(n.tolist(), raw.lattice.index(torch.full_like(a, level), y, x, a, raw.grids).tolist(), strict=True))


def test_assignment_is_the_match_of_each_image(make_raw, criterion):
    raw = make_raw(images=4)
    targets = [TARGETS[0], target(), TARGETS[1], target((1, 1, 30, 28, 2), (0, 0, 48, 24, 0, True))]
    assignment = criterion.assign(raw.lattice, raw.grids, targets)
    positives, boxes = [], assignment.boxes.split(list(assignment.positives_per_level))
    for level, (index, labels) in enumerate(assignment.positives_by_level()):
        positives += zip(flat_keys(raw, index, level), labels.tolist(), boxes[level].tolist(), strict=True)
    ignored = []
    for level, index in enumerate(assignment.ignored_by_level()):
        ignored += flat_keys(raw, index, level)

    expected, expected_ignored = [], []
    for image, one in enumerate(targets):
        match = Matcher()(raw.lattice, raw.grids, one.boxes, one.ignore)
        for flat, row in zip(match.positive.tolist(), match.box.tolist(), strict=True):
            expected.append(((image, flat), one.labels[row].item(), one.boxes[row].tolist()))
        expected_ignored += [(image, flat) for flat in match.ignored.tolist()]
    assert sorted(positives) == sorted(expected)
    assert sorted(ignored) == sorted(expected_ignored)
    assert assignment.num_positives == len(expected)
    assert {image for (image, _), _, _ in positives} == {0, 2, 3}
    assert any(image == 3 for image, _ in ignored)


@pytest.mark.parametrize("giou", [False, True])
def test_equals_the_textbook(make_raw, layout, giou):
    raw = make_raw(layout=layout)
    classification, box, positives = textbook(raw, TARGETS, giou)
    criterion = DetectionLoss(box=GIoU(), box_weight=2) if giou else DetectionLoss(box_weight=2)
    losses = criterion(raw, TARGETS)
    assert losses.positives == positives > 5
    assert losses.classification.item() == pytest.approx(classification.item() / positives, rel=1e-6)
    assert losses.box.item() == pytest.approx(2 * box.item() / positives, rel=1e-5)
    assert losses.total.item() == pytest.approx((losses.classification + losses.box).item())
    leaves = [*raw.logits, *raw.deltas]
    expected = torch.autograd.grad((classification + 2 * box) / positives, leaves)
    torch.testing.assert_close(torch.autograd.grad(losses.total, leaves), expected, rtol=1e-4, atol=1e-7)


def test_a_known_assignment_changes_nothing(make_raw, criterion):
    raw = make_raw()
    assignment = criterion.assign(raw.lattice, raw.grids, TARGETS)
    again, first = criterion(raw, TARGETS, assignment), criterion(raw, TARGETS)
    assert again.total.item() == first.total.item()


@pytest.mark.parametrize("classification", [FocalLoss(), OHEM()], ids=repr)
def test_a_batch_without_objects(make_raw, classification):
    raw = make_raw(dtype=torch.float32)
    losses = DetectionLoss(classification=classification)(raw, [target(), target()])
    assert losses.positives == 0
    assert losses.box.item() == 0
    losses.total.backward()
    assert losses.classification.item() == pytest.approx(
        classification(raw, DetectionLoss().assign(raw.lattice, raw.grids, [target()] * 2)).item()
    )
    assert all((level.grad == 0).all() for level in raw.deltas)  # zero, not None: distributed training waits for each
    assert all((level.grad >= 0).all() and (level.grad > 0).any() for level in raw.logits)


def test_an_image_without_objects_is_background(make_raw, criterion):
    raw = make_raw()
    losses = criterion(raw, [TARGETS[0], target()])
    expected, box, positives = textbook(raw, [TARGETS[0], target()])
    assert losses.classification.item() == pytest.approx(expected.item() / positives, rel=1e-6)
    assert losses.box.item() == pytest.approx(box.item() / positives, rel=1e-5)


def image(raw, number):
    """One image of a batch."""
    return RawOutput(
        *(tuple(level[number : number + 1] for level in levels) for levels in (raw.logits, raw.deltas)),
        raw.lattice,
        raw.coder,
    )


def test_accumulated_micro_batches_equal_the_batch(make_raw, criterion):
    raw = make_raw()
    whole = criterion(raw, TARGETS)
    leaves = [*raw.logits, *raw.deltas]
    expected = torch.autograd.grad(whole.total, leaves)
    parts = [criterion(image(raw, i), TARGETS[i : i + 1], normaliser=whole.positives) for i in range(2)]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-6)
    assert sum(part.positives for part in parts) == whole.positives
    for part in parts:
        part.total.backward()
    torch.testing.assert_close([leaf.grad for leaf in leaves], list(expected), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("given", [False, True])
def test_processes_share_one_normaliser(make_raw, criterion, monkeypatch, given):
    """What two processes with an image each would compute: the mean of their gradients is that of the batch."""
    raw = make_raw()
    leaves = [*raw.logits, *raw.deltas]
    whole = criterion(raw, TARGETS)
    expected = torch.autograd.grad(whole.total, leaves)
    positives = [criterion(image(raw, i), TARGETS[i : i + 1]).positives for i in range(2)]
    assert positives[0] != positives[1]

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    parts = []
    for i in range(2):
        monkeypatch.setattr(dist, "all_reduce", lambda tensor, other=positives[1 - i]: tensor.add_(other))
        share = sum(positives) / 2 if given else None
        parts.append(criterion(image(raw, i), TARGETS[i : i + 1], normaliser=share))
    assert [part.positives for part in parts] == positives
    assert sum(part.total.item() for part in parts) / 2 == pytest.approx(whole.total.item(), rel=1e-6)
    gradients = torch.autograd.grad(sum(part.total for part in parts) / 2, leaves)
    torch.testing.assert_close(gradients, expected, rtol=1e-6, atol=1e-12)


def test_processes_without_any_object_divide_by_one(make_raw, criterion, monkeypatch):
    raw = make_raw(images=1)
    alone = criterion(raw, [target()]).total.item()
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor)
    assert criterion(raw, [target()]).total.item() == pytest.approx(4 * alone)


THREE = [TARGETS[0], target(), TARGETS[1]]


@pytest.mark.parametrize(("kind", "box"), [("l1", L1()), ("giou", GIoU())])
@pytest.mark.parametrize("seed", range(3))
def test_each_image_by_its_own_positives_is_torchvisions_loss(make_raw, kind, box, seed):
    lattice = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners", floor_strides=True)).over(160, 224)
    raw = make_raw(images=3, dtype=torch.float32, seed=seed, lattice=lattice, grids=lattice.grids(160, 224))
    targets = [target((9, 20, 70, 61, 3), (100, 30, 130, 150, 0), (5, 5, 13, 9, 1)), target(), TARGETS[1]]
    logits, deltas = plain(raw)
    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    theirs = TorchvisionRetinaNet(backbone, num_classes=raw.num_classes)
    theirs.head.regression_head._loss_type = kind
    anchors = lattice.boxes(torch.arange(lattice.count(raw.grids)), raw.grids)
    expected = theirs.compute_loss(
        [{"boxes": one.boxes, "labels": one.labels} for one in targets],
        {"cls_logits": logits, "bbox_regression": deltas},
        [anchors] * 3,
    )
    losses = DetectionLoss(box=box, normaliser="image")(raw, targets)
    assert losses.positives > 10
    assert losses.classification.item() == pytest.approx(expected["classification"].item(), rel=1e-6)
    assert losses.box.item() == pytest.approx(expected["bbox_regression"].item(), rel=1e-6)
    leaves = [*raw.logits, *raw.deltas]
    gradients = torch.autograd.grad(expected["classification"] + expected["bbox_regression"], leaves)
    torch.testing.assert_close(torch.autograd.grad(losses.total, leaves), gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("classification", [FocalLoss(), OHEM()], ids=repr)
def test_each_image_by_its_own_positives_is_the_mean_of_the_images(make_raw, layout, classification):
    raw, criterion = make_raw(images=3, layout=layout), DetectionLoss(classification=classification, box_weight=2)
    alone = [criterion(image(raw, i), THREE[i : i + 1]) for i in range(3)]
    losses = replace(criterion, normaliser="image")(raw, THREE)
    assert losses.positives == sum(one.positives for one in alone)
    assert losses.classification.item() == pytest.approx(sum(one.classification.item() for one in alone) / 3, rel=1e-6)
    assert losses.box.item() == pytest.approx(sum(one.box.item() for one in alone) / 3, rel=1e-6)
    assert losses.total.item() != pytest.approx(criterion(raw, THREE).total.item(), rel=1e-2)
    leaves = [*raw.logits, *raw.deltas]
    expected = torch.autograd.grad(sum(one.total for one in alone) / 3, leaves)
    torch.testing.assert_close(torch.autograd.grad(losses.total, leaves), expected, rtol=1e-5, atol=1e-9)


def test_count_is_what_a_batch_adds_to_the_normaliser(make_raw, criterion):
    raw = make_raw(images=3)
    assignment = criterion.assign(raw.lattice, raw.grids, THREE)
    assert criterion.count(assignment, 3) == assignment.num_positives > 3
    assert DetectionLoss(normaliser="image").count(assignment, 3) == 3


def test_the_assignment_of_an_image_is_its_match(make_raw, criterion):
    raw = make_raw(images=3)
    targets = [TARGETS[0], target((1, 1, 30, 28, 2), (0, 0, 48, 24, 0, True)), target()]
    whole = criterion.assign(raw.lattice, raw.grids, targets)
    for number, one in enumerate(targets):
        part, expected = whole.of_image(number), criterion.assign(raw.lattice, raw.grids, [one])
        for name in ("index", "labels", "boxes", "ignored"):
            assert torch.equal(getattr(part, name), getattr(expected, name)), name
        assert part.positives_per_level == expected.positives_per_level
        assert part.ignored_per_level == expected.ignored_per_level


def test_processes_share_the_number_of_images(make_raw, monkeypatch):
    """One process with two images, one with one: the mean of their gradients is that of the batch of three."""
    raw, criterion = make_raw(images=3), DetectionLoss(normaliser="image")
    leaves = [*raw.logits, *raw.deltas]
    expected = torch.autograd.grad(criterion(raw, THREE).total, leaves)
    first = replace(raw, **{name: tuple(x[:2] for x in getattr(raw, name)) for name in ("logits", "deltas")})
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    totals = []
    for part, targets, elsewhere in ((first, THREE[:2], 1), (image(raw, 2), THREE[2:], 2)):
        monkeypatch.setattr(dist, "all_reduce", lambda tensor, elsewhere=elsewhere: tensor.add_(elsewhere))
        totals.append(criterion(part, targets).total)
    torch.testing.assert_close(torch.autograd.grad(sum(totals) / 2, leaves), expected, rtol=1e-6, atol=1e-12)


def test_a_quarter_of_the_box_loss_is_yhenons(make_raw):
    """Its code takes the mean over positives and their four coordinates, image by image, of deltas in units of std."""
    std = (0.1, 0.1, 0.2, 0.2)
    raw = replace(make_raw(images=3), coder=BoxCoder(std=std))
    _, deltas = plain(raw)
    every = raw.lattice.boxes(torch.arange(raw.lattice.count(raw.grids)), raw.grids).double()
    expected = []
    for said, one in zip(deltas, THREE, strict=True):
        match = Matcher(forced="off")(raw.lattice, raw.grids, one.boxes, one.ignore)
        if not len(match.positive):
            expected.append(0 * said.sum())
            continue
        anchors, boxes = every[match.positive], one.boxes[match.box].double()
        sides, wanted_sides = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
        shift = (boxes[:, :2] + wanted_sides / 2 - anchors[:, :2] - sides / 2) / sides
        wanted = torch.cat([shift, (wanted_sides / sides).log()], dim=1) / torch.tensor(std).double()
        gap = (wanted - said[match.positive]).abs()
        expected.append(torch.where(gap <= 1 / 9, 0.5 * 9 * gap**2, gap - 0.5 / 9).mean())
    assert sum(one.item() > 0 for one in expected) == 2
    criterion = DetectionLoss(matcher=Matcher(forced="off"), box=SmoothL1(1 / 9), box_weight=0.25, normaliser="image")
    losses = criterion(raw, THREE)
    assert losses.box.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    gradients = torch.autograd.grad(torch.stack(expected).mean(), raw.deltas)
    torch.testing.assert_close(torch.autograd.grad(losses.box, raw.deltas), gradients, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_outputs(make_raw, criterion, dtype):
    raw = make_raw(dtype=dtype)
    wide = RawOutput(
        *(tuple(level.detach().double() for level in levels) for levels in (raw.logits, raw.deltas)),
        raw.lattice,
        raw.coder,
    )
    losses, expected = criterion(raw, TARGETS), criterion(wide, TARGETS)
    assert losses.total.dtype == torch.float32
    assert losses.classification.item() == pytest.approx(expected.classification.item(), rel=1e-5)
    assert losses.box.item() == pytest.approx(expected.box.item(), rel=1e-5)
    losses.total.backward()
    assert all(level.grad.dtype == dtype and level.grad.isfinite().all() for level in (*raw.logits, *raw.deltas))


@pytest.mark.parametrize("label", [4, -1])
def test_a_label_beyond_the_classes_is_refused(make_raw, criterion, label):
    raw = make_raw()
    with pytest.raises(UserError, match=f"label {label}, but the network has 4 classes, 0 to 3"):
        criterion(raw, [target((2, 3, 19, 18, label)), target()])


def test_targets_must_fit_the_images(make_raw, criterion):
    with pytest.raises(UserError, match="2 images, but there are 1 targets"):
        criterion(make_raw(), TARGETS[:1])


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf])
def test_box_weight_outside_is_refused(weight):
    with pytest.raises(UserError, match="box_weight"):
        DetectionLoss(box_weight=weight)


def test_an_unknown_normaliser_is_refused():
    with pytest.raises(UserError, match="normaliser is batch or image, got 'level'"):
        DetectionLoss(normaliser="level")
