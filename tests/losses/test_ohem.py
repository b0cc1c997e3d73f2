from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import box_iou

from retinanet.errors import UserError
from retinanet.losses import ohem
from retinanet.losses.ohem import OHEM


def cross_entropies(raw, assignment, dense):
    """Of each anchor, in flat order: fp64 cross entropy with gradient, is it positive, does it count; (N, anchors)."""
    targets, counted = dense(raw, assignment)
    rows = []
    for logits, target, count in zip(raw.logits, targets, counted, strict=True):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), target.double(), reduction="none")
        shape = (raw.lattice.num_anchors, raw.num_classes)
        summed = [loss.unflatten(1, shape).sum(2), target.unflatten(1, shape).sum(2), count.unflatten(1, shape).sum(2)]
        rows.append([value.permute(0, 2, 3, 1).flatten(1) for value in summed])
    losses, positive, count = (torch.cat(part, dim=1) for part in zip(*rows, strict=True))
    return losses, positive > 0, count > 0


def suppressed(candidates, losses, boxes, threshold):
    """Greedy suppression, one box at a time."""
    kept: list[int] = []
    overlaps = box_iou(boxes, boxes).tolist()
    for flat in sorted(candidates, key=lambda flat: -losses[flat].item()):
        if all(overlaps[flat][other] <= threshold for other in kept):
            kept.append(flat)
    return kept


def brute_force(raw, assignment, dense, batch, nms, ratio):
    """The sum over the minibatches, and how many anchors are in them."""
    losses, positive, counted = cross_entropies(raw, assignment, dense)
    boxes = raw.lattice.boxes(torch.arange(losses.shape[1]), raw.grids)
    terms = []
    for loss, good, count in zip(losses, positive, counted, strict=True):
        kept = suppressed(count.nonzero().flatten().tolist(), loss, boxes, nms)
        if ratio is not None:
            positives = [flat for flat in kept if good[flat]][: int(batch / (1 + ratio))]
            negatives = [flat for flat in kept if not good[flat]]
            kept = positives + negatives[: min(int(ratio * max(len(positives), 1)), batch - len(positives))]
        terms += [loss[flat] for flat in kept[:batch]]
    return sum(terms), len(terms)


@pytest.mark.parametrize("ratio", [None, 3, 1.5])
@pytest.mark.parametrize(("batch", "nms"), [(4, 0.5), (12, 0.5), (12, 0.7), (500, 0.3)])
def test_equals_brute_force(make_raw, make_assignment, dense, channels_last_layout, batch, nms, ratio):
    raw = make_raw(layout=channels_last_layout)
    assignment = make_assignment(raw)
    expected, size = brute_force(raw, assignment, dense, batch, nms, ratio)
    loss = OHEM(batch=batch, nms=nms, ratio=ratio)(raw, assignment)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    gradients = torch.autograd.grad(loss, raw.logits)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, raw.logits))
    assert sum((gradient != 0).sum().item() for gradient in gradients) == size * raw.num_classes


def test_any_layout(make_raw, make_assignment, dense, layout):
    raw = make_raw(layout=layout)
    assignment = make_assignment(raw)
    expected, _ = brute_force(raw, assignment, dense, 12, 0.5, None)
    assert OHEM(batch=12)(raw, assignment).item() == pytest.approx(expected.item(), rel=1e-12)


def test_an_image_without_positives(make_raw, make_assignment, dense):
    raw = make_raw()
    assignment = make_assignment(raw, positives=0)
    for ratio, size in ((None, 8), (3, 3)):
        expected, count = brute_force(raw, assignment, dense, 8, 0.5, ratio)
        assert count == 2 * size
        assert OHEM(batch=8, ratio=ratio)(raw, assignment).item() == pytest.approx(expected.item(), rel=1e-12)


def test_everything_ignored(make_raw, make_assignment):
    raw = make_raw()
    assignment = make_assignment(raw, positives=0, ignored=2 * raw.lattice.count(raw.grids))
    loss = OHEM()(raw, assignment)
    loss.backward()
    assert loss.item() == 0
    assert all((level.grad == 0).all() for level in raw.logits)


def test_only_the_hardest_enter_the_suppression(make_raw, make_assignment, dense, monkeypatch):
    raw = make_raw()
    assignment = make_assignment(raw)
    monkeypatch.setattr(ohem, "CANDIDATES", 1)
    losses, _, counted = cross_entropies(raw, assignment, dense)
    boxes = raw.lattice.boxes(torch.arange(losses.shape[1]), raw.grids)
    expected = 0
    for loss, count in zip(losses, counted, strict=True):
        hardest = loss.where(count, -torch.inf).topk(10).indices.tolist()
        expected += sum(loss[flat].item() for flat in suppressed(hardest, loss, boxes, 0.5))
    assert OHEM(batch=10)(raw, assignment).item() == pytest.approx(expected, rel=1e-12)


def test_bfloat16(make_raw, make_assignment, dense):
    raw = make_raw(dtype=torch.bfloat16)
    assignment = make_assignment(raw)
    loss = OHEM(batch=12)(raw, assignment)
    expected, _ = brute_force(raw, assignment, dense, 12, 0.5, None)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch": 0}, "batch of at least 1"),
        ({"nms": 1.5}, "nms of OHEM"),
        ({"nms": math.nan}, "nms of OHEM"),
        ({"ratio": 0}, "ratio of OHEM"),
        ({"ratio": math.nan}, "ratio of OHEM"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        OHEM(**wrong)
