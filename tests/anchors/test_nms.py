"""Suppression against a plain greedy loop, and votes against a plain mean."""

import pytest
import torch
from torchvision.ops import box_iou

from retinanet.anchors.nms import BAND, count_voters, nms, nms_keep, vote_in_bands


def greedy(boxes, scores, labels, threshold: float, class_agnostic: bool = False) -> list[int]:
    """Best first, earlier first; a kept box suppresses what overlaps it more than the threshold."""
    overlap, classes = box_iou(boxes, boxes).tolist(), labels.tolist()
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i)):
        rivals = [j for j in kept if class_agnostic or classes[i] == classes[j]]
        if all(overlap[j][i] <= threshold for j in rivals):
            kept.append(i)
    return kept


def crowd(count: int, classes: int, seed: int, extent: float = 200, origin: float = 0):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * extent + origin
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * extent / 3 + 1], dim=1)
    return boxes, torch.rand(count, generator=generator), torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("classes", [1, 3, 80])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_equals_the_greedy_loop(threshold, classes, class_agnostic):
    boxes, scores, labels = crowd(250, classes, seed=classes)
    expected = greedy(boxes, scores, labels, threshold, class_agnostic)
    assert nms(boxes, scores, labels, threshold, class_agnostic).tolist() == expected


@pytest.mark.parametrize("seed", range(20))
def test_equal_scores_and_equal_boxes(seed):
    boxes, scores, labels = crowd(120, 4, seed, extent=30)
    boxes, scores = boxes.round(), (scores * 4).round() / 4
    boxes[60:80] = boxes[:20]
    assert nms(boxes, scores, labels, 0.5).tolist() == greedy(boxes, scores, labels, 0.5)


def test_negative_coordinates_and_neighbouring_classes():
    """Shifting classes by the largest coordinate + 1 lets boxes that start below zero touch those of the next class."""
    boxes, scores, labels = crowd(200, 5, seed=1, extent=100, origin=-80)
    assert (boxes < 0).any()
    assert nms(boxes, scores, labels, 0.3).tolist() == greedy(boxes, scores, labels, 0.3)


def near_threshold_pairs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """80 classes over 1333 px, each with pairs of boxes whose IoU is a ten-thousandth above or below one half."""
    generator = torch.Generator().manual_seed(0)
    boxes, labels = [], []
    for label in range(80):
        for corner in (torch.rand(4, 2, generator=generator) * torch.tensor([300.0, 1300]) + 1e-3).tolist():
            target = 0.5 + (1e-4 if torch.rand(1, generator=generator) < 0.5 else -1e-4)
            x, y = corner[0] + 320 * (len(boxes) // 2 % 4), corner[1]
            shift = 20 * (1 - target) / (1 + target)
            boxes += [[x, y, x + 20, y + 15], [x + shift, y, x + shift + 20, y + 15]]
            labels += [label, label]
    return torch.tensor(boxes), torch.linspace(1, 0.1, len(boxes)), torch.tensor(labels)


def test_80_classes_at_1333_px_lose_no_precision():
    boxes, scores, labels = near_threshold_pairs()
    expected = greedy(boxes, scores, labels, 0.5)
    assert nms(boxes, scores, labels, 0.5).tolist() == expected
    shifted = boxes + labels[:, None] * (boxes.max() + 1)
    assert greedy(shifted, scores, labels, 0.5) != expected, "these boxes cannot tell shifting from exactness"


def test_order_is_by_score_then_position():
    boxes = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10], [20, 20, 21, 21]])
    scores, labels = torch.tensor([0.5, 0.9, 0.5, 0.9]), torch.tensor([7, 3, 0, 1])
    for agnostic in (False, True):
        assert nms(boxes, scores, labels, 0.5, agnostic).tolist() == [1, 3, 0, 2]


def test_shuffled_input_keeps_the_same_boxes():
    boxes, scores, labels = crowd(300, 6, seed=3)
    kept = boxes[nms(boxes, scores, labels, 0.4)]
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(boxes[order][nms(boxes[order], scores[order], labels[order], 0.4)], kept)


def test_boxes_that_touch_or_have_no_area_suppress_nothing():
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [3, 3, 3, 3], [3, 3, 3, 3]])
    assert nms(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.zeros(4, dtype=torch.int64), 0.0).tolist() == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_nothing_in_nothing_out(class_agnostic):
    empty = torch.zeros(0, dtype=torch.int64)
    kept = nms(torch.zeros(0, 4), torch.zeros(0), empty, 0.5, class_agnostic)
    assert kept.dtype == torch.int64 and kept.shape == (0,)


def test_votes_in_bands_are_the_votes_of_all():
    """As a loop over the detections in float64, each with all candidates; more than fit into one band."""
    boxes, scores, labels = crowd(2500, 3, seed=5, extent=500)
    boxes[:5] = torch.tensor([-50.0, -50, 600, 600]) + torch.arange(20.0).reshape(5, 4)  # as high as the image
    chosen = nms(boxes, scores, labels, 0.6)[:700]
    found = vote_in_bands(boxes[chosen], labels[chosen], boxes, scores, labels, 0.4)
    assert len(chosen) > 3 * BAND and (found != boxes[chosen]).any(dim=1).sum() > 100
    for row, moved in zip(chosen.tolist(), found.double(), strict=True):
        votes = (labels == labels[row]) & (box_iou(boxes[row][None], boxes)[0] >= 0.4)
        wanted = (scores[votes, None].double() * boxes[votes].double()).sum(dim=0) / scores[votes].double().sum()
        torch.testing.assert_close(moved, wanted, rtol=0, atol=1e-3)
    assert torch.equal(vote_in_bands(boxes[:3], labels[:3], boxes[:0], scores[:0], labels[:0], 0.4), boxes[:3])
    assert vote_in_bands(boxes[:0], labels[:0], boxes, scores, labels, 0.4).shape == (0, 4)


def test_more_candidates_vote_where_more_is_detected():
    assert [count_voters(most) for most in (1, 100, 300, 2000)] == [1000, 1000, 1500, 10_000]


def candidates(images=3, count=150, classes=4):
    """Batched boxes, scores with a fifth of them 0, which are no candidates, and labels."""
    parts = [crowd(count, classes, seed=seed, extent=90, origin=-10) for seed in range(images)]
    boxes, scores, labels = (torch.stack(part) for part in zip(*parts, strict=True))
    return boxes, torch.where(torch.arange(count) % 5 == 0, 0.0, scores), labels


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_the_operator_of_exported_graphs_keeps_the_same(threshold, class_agnostic):
    boxes, scores, labels = candidates()
    keep = nms_keep(boxes, scores, labels, threshold, class_agnostic, 4, 150)
    assert keep.shape == scores.shape and keep.dtype == torch.bool and 0 < keep.sum() < (scores > 0).sum()
    for n in range(len(boxes)):
        there = (scores[n] > 0).nonzero()[:, 0]
        wanted = greedy(boxes[n, there], scores[n, there], labels[n, there], threshold, class_agnostic)
        assert keep[n].nonzero()[:, 0].tolist() == sorted(there[wanted].tolist())


@pytest.mark.parametrize("count", [0, 7])
def test_the_operator_without_candidates(count):
    keep = nms_keep(torch.zeros(2, count, 4), torch.zeros(2, count), torch.zeros(2, count).long(), 0.5, False, 3, 9)
    assert keep.shape == (2, count) and not keep.any()


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_the_operator_is_registered_as_torch_wants_it(class_agnostic):
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(nms_keep, (*candidates(), 0.5, class_agnostic, 4, 150), test_utils=tests)
