"""The box coder against torchvision's, against fp64, and against itself."""

import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionBoxCoder

from retinanet.anchors.coding import BoxCoder

CODERS = [BoxCoder(), BoxCoder(std=(0.1, 0.1, 0.2, 0.2))]


def random_boxes(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 1300 - 50
    return torch.cat([corner, corner + 2 ** (torch.rand(count, 2, generator=generator) * 7 + 2)], dim=1)


def encode_in_float64(boxes: torch.Tensor, anchors: torch.Tensor, std: tuple[float, ...]) -> torch.Tensor:
    rows = []
    for (x1, y1, x2, y2), (ax1, ay1, ax2, ay2) in zip(boxes.tolist(), anchors.tolist(), strict=True):
        width, height = ax2 - ax1, ay2 - ay1
        dx = ((x1 + x2) / 2 - (ax1 + ax2) / 2) / width
        dy = ((y1 + y2) / 2 - (ay1 + ay2) / 2) / height
        dw, dh = math.log((x2 - x1) / width), math.log((y2 - y1) / height)
        rows.append([delta / scale for delta, scale in zip((dx, dy, dw, dh), std, strict=True)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("coder", CODERS)
def test_encode_equals_the_formula_in_float64(coder):
    boxes, anchors = random_boxes(300, 0), random_boxes(300, 1)
    expected = encode_in_float64(boxes, anchors, coder.std)
    torch.testing.assert_close(coder.encode(boxes, anchors).double(), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("coder", CODERS)
def test_round_trip(coder):
    boxes, anchors = random_boxes(300, 2), random_boxes(300, 3)
    near = (boxes[:, 2:] - boxes[:, :2]) / (anchors[:, 2:] - anchors[:, :2])
    boxes, anchors = boxes[(near < 60).all(dim=1)], anchors[(near < 60).all(dim=1)]
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors), anchors), boxes, atol=5e-3, rtol=0)


def test_anchor_itself_is_zero():
    anchors = random_boxes(50, 4)
    assert BoxCoder().encode(anchors, anchors).abs().max() == 0
    torch.testing.assert_close(BoxCoder().decode(torch.zeros(50, 4), anchors), anchors, atol=2e-4, rtol=0)


@pytest.mark.parametrize("coder", CODERS)
def test_agrees_with_torchvision(coder):
    theirs = TorchvisionBoxCoder(tuple(1 / std for std in coder.std))
    boxes, anchors = random_boxes(300, 5), random_boxes(300, 6)
    torch.testing.assert_close(coder.encode(boxes, anchors), theirs.encode_single(boxes, anchors), atol=1e-4, rtol=1e-5)
    deltas = torch.randn(300, 4, generator=torch.Generator().manual_seed(7)) * 3
    torch.testing.assert_close(
        coder.decode(deltas, anchors), theirs.decode_single(deltas, anchors), atol=1e-3, rtol=1e-5
    )


def test_clamp_bounds_growth_only():
    coder, anchor = BoxCoder(), torch.tensor([[0.0, 0, 16, 16]])
    grown = coder.decode(torch.tensor([[0.0, 0, 80, 4.2]]), anchor)
    torch.testing.assert_close(grown, torch.tensor([[-492.0, -492, 508, 508]]), atol=1e-2, rtol=0)
    shrunk = coder.decode(torch.tensor([[0.0, 0, -5, -5]]), anchor)
    side = 16 * math.exp(-5)
    expected = torch.tensor([[8 - side / 2, 8 - side / 2, 8 + side / 2, 8 + side / 2]])
    torch.testing.assert_close(shrunk, expected, atol=1e-5, rtol=0)


def test_clamp_below_bounds_shrinking_too():
    """Against mmdetection's rule in float64: dw and dh between -log(1000 / 16) and log(1000 / 16), after the std."""
    anchors = random_boxes(300, 10)
    deltas = torch.randn(300, 4, generator=torch.Generator().manual_seed(11)) * 5
    for coder in (BoxCoder(clamp_below=True), BoxCoder(std=(0.1, 0.1, 0.5, 0.5), clamp_below=True)):
        scaled = deltas.double() * torch.tensor(coder.std).double()
        low, high = anchors.double().split(2, dim=1)
        centre = (low + high) / 2 + scaled[:, :2] * (high - low)
        growth = scaled[:, 2:]
        assert (growth < -coder.clamp).any() and (growth > coder.clamp).any()
        half = (high - low) / 2 * growth.clamp(-math.log(1000 / 16), math.log(1000 / 16)).exp()
        expected = torch.cat([centre - half, centre + half], dim=1)
        got = coder.decode(deltas, anchors)
        torch.testing.assert_close(got.double(), expected, atol=2e-3, rtol=1e-5)
        within = (growth >= -coder.clamp).all(dim=1)
        without = BoxCoder(std=coder.std).decode(deltas, anchors)
        assert torch.equal(got[within], without[within]) and not torch.equal(got, without)


def test_clamp_acts_after_std():
    coder, anchor = BoxCoder(std=(0.1, 0.1, 0.2, 0.2)), torch.tensor([[0.0, 0, 16, 16]])
    below = coder.decode(torch.tensor([[0.0, 0, 10, 10]]), anchor)  # 10 * 0.2 is below the clamp
    side = (below[0, 2] - below[0, 0]).item()
    assert side == pytest.approx(16 * math.exp(2), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_deltas_are_decoded_in_float32(dtype):
    anchors = random_boxes(100, 8)
    deltas = torch.randn(100, 4, generator=torch.Generator().manual_seed(9)).to(dtype)
    boxes = BoxCoder().decode(deltas, anchors)
    assert boxes.dtype == torch.float32
    assert torch.equal(boxes, BoxCoder().decode(deltas.float(), anchors))


def test_no_boxes():
    assert BoxCoder().encode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert BoxCoder().decode(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
