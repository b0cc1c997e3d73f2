from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from retinanet.anchors.coding import BoxCoder
from retinanet.errors import UserError
from retinanet.losses.box import L1, GIoU, SmoothL1

LOSSES = [SmoothL1(), SmoothL1(beta=1.0), SmoothL1(beta=0), L1(), GIoU()]
CODERS = [BoxCoder(), BoxCoder(std=(0.1, 0.1, 0.2, 0.2))]


def boxes_like(count, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 90 + 8], dim=1)


@pytest.fixture
def problem():
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 0.4
    return deltas.requires_grad_(), boxes_like(50, 1), boxes_like(50, 2)


def encoded_by_hand(boxes, anchors, coder):
    """The targets of the deltas, one box at a time."""
    rows = []
    for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        width, height = a2 - a1, b2 - b1
        dx, dy = ((x1 + x2) - (a1 + a2)) / 2 / width, ((y1 + y2) - (b1 + b2)) / 2 / height
        dw, dh = math.log((x2 - x1) / width), math.log((y2 - y1) / height)
        rows.append([d / s for d, s in zip((dx, dy, dw, dh), coder.std, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("beta", [1 / 9, 1.0, 5.0])
def test_smooth_l1_by_its_definition(problem, coder, beta):
    deltas, anchors, boxes = problem
    gap = deltas.detach().double() - encoded_by_hand(boxes, anchors, coder)
    expected = torch.where(gap.abs() < beta, gap**2 / 2 / beta, gap.abs() - beta / 2).sum()
    slope = (gap / beta).clamp(-1, 1)
    loss = SmoothL1(beta)(deltas, anchors, boxes, coder)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, deltas)[0].double(), slope, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("coder", CODERS)
def test_l1_by_its_definition(problem, coder):
    deltas, anchors, boxes = problem
    expected = (deltas.detach().double() - encoded_by_hand(boxes, anchors, coder)).abs().sum().item()
    assert L1()(deltas, anchors, boxes, coder).item() == pytest.approx(expected, rel=1e-5)
    assert SmoothL1(beta=0)(deltas, anchors, boxes, coder).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("coder", CODERS)
def test_giou_equals_torchvision(problem, coder):
    deltas, anchors, boxes = problem
    theirs = generalized_box_iou_loss(coder.decode(deltas, anchors), boxes, reduction="sum", eps=1e-7)
    ours = GIoU()(deltas, anchors, boxes, coder)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, deltas)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_giou_by_its_definition(problem):
    deltas, anchors, boxes = problem
    total = 0.0
    decoded = BoxCoder().decode(deltas.detach(), anchors)
    for (x1, y1, x2, y2), (a1, b1, a2, b2) in zip(decoded.double().tolist(), boxes.double().tolist(), strict=True):
        common = max(0, min(x2, a2) - max(x1, a1)) * max(0, min(y2, b2) - max(y1, b1))
        union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - common
        hull = (max(x2, a2) - min(x1, a1)) * (max(y2, b2) - min(y1, b1))
        total += 1 - common / union + (hull - union) / hull
    assert GIoU()(deltas, anchors, boxes, BoxCoder()).item() == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_the_right_answer_costs_nothing(loss, coder):
    anchors, boxes = boxes_like(50, 1), boxes_like(50, 2)
    assert loss(coder.encode(boxes, anchors), anchors, boxes, coder).item() == pytest.approx(0, abs=2e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_degenerate_predictions_have_finite_gradients(loss):
    far, thin, huge = [1e4, -1e4, 0, 0], [0, 0, -200, -200], [0, 0, 500, 500]
    deltas = torch.tensor([far, thin, huge, [0.0, 0, 0, -90]], requires_grad=True)
    anchors = torch.tensor([[0.0, 0, 32, 32]]).expand(4, 4)
    value = loss(deltas, anchors, anchors + 4, BoxCoder())
    (gradient,) = torch.autograd.grad(value, deltas)
    assert value.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_half_precision_is_summed_in_float32(problem, loss):
    deltas, anchors, boxes = problem
    short = deltas.detach().bfloat16().requires_grad_()
    value = loss(short, anchors, boxes, BoxCoder())
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(short.float(), anchors, boxes, BoxCoder()).item(), rel=1e-7)
    assert torch.autograd.grad(value, short)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_no_positives(loss):
    nothing = torch.zeros(0, 4, requires_grad=True)
    value = loss(nothing, torch.zeros(0, 4), torch.zeros(0, 4), BoxCoder())
    assert value.item() == 0
    assert torch.autograd.grad(value, nothing)[0].shape == (0, 4)


@pytest.mark.parametrize("beta", [-1, math.nan, math.inf])
def test_beta_outside_is_refused(beta):
    with pytest.raises(UserError, match="beta of the smooth L1 loss"):
        SmoothL1(beta=beta)
