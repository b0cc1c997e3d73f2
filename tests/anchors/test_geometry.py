"""Geometry against plain Python and torchvision."""

import torch
from torchvision.ops import box_iou

from retinanet.anchors import geometry


def random_boxes(count: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=dtype) * 60 - 10
    return torch.cat([corner, corner + torch.rand(count, 2, generator=generator, dtype=dtype) * 30 + 0.5], dim=1)


def overlap_by_hand(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Intersection, union and enclosing area of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return intersection, union, hull


def test_overlaps_equal_plain_python():
    a, b = random_boxes(40, 0, torch.float64), random_boxes(30, 1, torch.float64)
    by_hand = [[overlap_by_hand(x, y) for y in b.tolist()] for x in a.tolist()]
    iou = torch.tensor([[i / u for i, u, _ in row] for row in by_hand], dtype=torch.float64)
    assert (iou > 0).any() and (iou == 0).any()
    torch.testing.assert_close(geometry.iou(a, b), iou)
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(30), indexing="ij")
    pairs = a[rows.flatten()], b[columns.flatten()]
    torch.testing.assert_close(geometry.paired_iou(*pairs), iou.flatten())
    flat = [cell for row in by_hand for cell in row]
    torch.testing.assert_close(geometry.paired_intersection(*pairs), torch.tensor([i for i, _, _ in flat]).double())
    giou = torch.tensor([i / u - (hull - u) / hull for i, u, hull in flat], dtype=torch.float64)
    torch.testing.assert_close(geometry.generalised_iou(*pairs), giou, atol=1e-6, rtol=0)


def test_paired_iou_rounds_like_the_matrix():
    a, b = random_boxes(500, 2), random_boxes(500, 3)
    assert torch.equal(geometry.paired_iou(a, b), box_iou(a, b).diagonal())


def test_iou_without_area_is_zero():
    point = torch.tensor([[3.0, 3, 3, 3]])
    assert geometry.iou(point, point).item() == 0
    assert geometry.iou(point, torch.tensor([[0.0, 0, 9, 9]])).item() == 0
    assert geometry.iou(torch.zeros(0, 4), point).shape == (0, 1)


def test_generalised_iou_has_the_right_gradient():
    a, b = random_boxes(20, 4, torch.float64).requires_grad_(), random_boxes(20, 5, torch.float64)
    assert torch.autograd.gradcheck(lambda boxes: geometry.generalised_iou(boxes, b), (a,))


def test_clip():
    boxes = torch.tensor([[-5.0, 2, 30, 60], [1, 2, 4, 8]])
    assert geometry.clip(boxes, (50, 20)).tolist() == [[0, 2, 20, 50], [1, 2, 4, 8]]
    assert boxes.tolist() == [[-5, 2, 30, 60], [1, 2, 4, 8]], "the input is left as it was"
