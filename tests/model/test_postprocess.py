"""Post-processing against a plain, dense one: every anchor scored, decoded and sorted, suppression in a Python loop."""

import math

import pytest
import torch

from retinanet.boxes.coding import BoxCoder
from retinanet.boxes.lattice import AnchorLattice
from retinanet.model.postprocess import Postprocess
from retinanet.types import RawOutput, UserError

LATTICE = AnchorLattice(
    strides=(8, 16, 32), sizes=(20, 40, 80), ratios=(0.5, 2.0), scales=(1.0, 1.4)
)  # 4 anchors per cell
A, K, NAMES = 4, 3, ("ant", "bee", "cow")
SIZES = torch.tensor([[64, 96], [50, 41], [7, 96]])  # of the content; all are padded to 64 x 96


def raw_output(seed, images=3, spread=2.0, dtype=torch.float32, steps=None):
    """Random outputs; ``steps`` rounds the logits to a few values, for ties."""
    generator = torch.Generator().manual_seed(seed)
    grids = LATTICE.grids(64, 96)
    logits = [torch.randn(images, A * K, *grid, generator=generator) * spread - 3 for grid in grids]
    deltas = [torch.randn(images, A * 4, *grid, generator=generator) * 0.7 for grid in grids]
    if steps:
        logits = [(level * steps).round() / steps for level in logits]
    return RawOutput(tuple(x.to(dtype) for x in logits), tuple(x.to(dtype) for x in deltas), LATTICE, BoxCoder())


def overlap(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0) * max(height, 0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def dense_level(logits, deltas, level):
    """(logit, label, box) of everything on a level of an image, in the order channel, row, column; float64."""
    _, height, width = logits.shape
    logits, deltas = logits.double().reshape(A, K, height, width), deltas.double().reshape(A, 4, height, width)
    found = []
    templates = [(ratio, scale) for ratio in LATTICE.ratios for scale in LATTICE.scales]
    for a, (ratio, scale) in enumerate(templates):
        side = LATTICE.sizes[level] * scale
        w, h = side / math.sqrt(ratio), side * math.sqrt(ratio)
        x = ((torch.arange(width) + 0.5) * LATTICE.strides[level]).double()[None] + deltas[a, 0] * w
        y = ((torch.arange(height) + 0.5) * LATTICE.strides[level]).double()[:, None] + deltas[a, 1] * h
        w, h = (side * deltas[a, i].clamp(max=math.log(1000 / 16)).exp() / 2 for side, i in ((w, 2), (h, 3)))
        boxes = torch.stack([x - w, y - h, x + w, y + h], -1).reshape(-1, 4).tolist()
        for k in range(K):
            found += zip(logits[a, k].flatten().tolist(), [k] * len(boxes), boxes, strict=True)
    return found


def dense(raw, image, size, rule):
    """(score, label, box) of the detections of an image."""
    height, width = size
    threshold = math.log(rule.score / (1 - rule.score)) if rule.score else -math.inf
    candidates = []
    for level in range(len(raw.logits)):
        found = [row for row in dense_level(raw.logits[level][image], raw.deltas[level][image], level)
                 if row[0] > threshold]  # fmt: skip
        chosen = sorted(range(len(found)), key=lambda i, found=found: (-found[i][0], i))[: rule.topk]
        candidates += [found[i] for i in sorted(chosen)]
    clipped = [
        (logit, label, [max(0, min(box[i], (width, height)[i % 2])) for i in range(4)])
        for logit, label, box in candidates
    ]
    clipped = [row for row in clipped if row[2][2] > row[2][0] and row[2][3] > row[2][1]]
    kept = []
    for logit, label, box in sorted(clipped, key=lambda row: -row[0]):
        if all(overlap(box, other) <= rule.nms for _, k, other in kept if rule.class_agnostic or k == label):
            kept.append((logit, label, box))
    return [(1 / (1 + math.exp(-logit)), label, box) for logit, label, box in kept[: rule.max_detections]]


def assert_equals_dense(raw, rule, sizes=SIZES):
    detections = rule(raw, sizes, NAMES)
    assert len(detections) == len(sizes)
    for image, found in enumerate(detections):
        expected = dense(raw, image, sizes[image].tolist(), rule)
        assert found.labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(found.scores, torch.tensor([s for s, _, _ in expected]), rtol=1e-5, atol=0)
        boxes = torch.tensor([box for *_, box in expected]).reshape(-1, 4)
        torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-3)
        assert found.class_names == NAMES and found.boxes.dtype == found.scores.dtype == torch.float32
    return detections


@pytest.mark.parametrize(
    "rule",
    [
        Postprocess(),
        Postprocess(score=0.3, topk=15, nms=0.3, max_detections=10),
        Postprocess(topk=40, class_agnostic=True),
        Postprocess(score=0, topk=60, max_detections=200, nms=1.0),
        Postprocess(score=0.9, topk=1, max_detections=1),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_dense_way(rule, seed):
    found = assert_equals_dense(raw_output(seed), rule)
    assert any(len(one) for one in found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("class_agnostic", [False, True])
def test_ties(seed, class_agnostic):
    """A few values for hundreds of logits: the cut, the ranking and the suppression all meet equal scores."""
    raw = raw_output(seed, steps=1)
    rule = Postprocess(score=0.2, topk=13, class_agnostic=class_agnostic, max_detections=25)
    cut = sum(int((level[0] >= level[0].flatten().topk(13).values.min()).sum()) > 13 for level in raw.logits)
    assert cut >= 2
    assert_equals_dense(raw, rule)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype):
    assert_equals_dense(raw_output(5, dtype=dtype), Postprocess(topk=50))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_threshold_is_not_rounded(dtype):
    """The two bfloat16 numbers around logit(0.05) = -2.944: one is above, though the threshold rounds to it."""
    grid = torch.full((1, A * K, 1, 2), -9.0, dtype=dtype)
    grid[0, 0, 0, 0], grid[0, 0, 0, 1] = -2.9375, -2.953125
    raw = RawOutput((grid,), (torch.zeros(1, A * 4, 1, 2, dtype=dtype),), LATTICE, BoxCoder())
    (found,) = Postprocess(nms=1.0)(raw, torch.tensor([[64, 96]]), NAMES)
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(2.9375))])


def test_memory_layout_does_not_matter():
    raw, rule = raw_output(3, steps=2), Postprocess(topk=20)

    def laid_out(change):
        return RawOutput(tuple(map(change, raw.logits)), tuple(map(change, raw.deltas)), LATTICE, raw.coder)

    contiguous = rule(raw, SIZES, NAMES)
    for change in (
        lambda level: level.contiguous(memory_format=torch.channels_last),
        lambda level: level.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        assert not change(raw.logits[0]).is_contiguous()
        for one, other in zip(contiguous, rule(laid_out(change), SIZES, NAMES), strict=True):
            assert torch.equal(one.boxes, other.boxes) and torch.equal(one.scores, other.scores)
            assert torch.equal(one.labels, other.labels)


def test_an_image_does_not_depend_on_its_neighbours():
    raw, rule = raw_output(4), Postprocess()
    together = rule(raw, SIZES, NAMES)
    for image in range(3):
        own = [tuple(level[image : image + 1] for level in levels) for levels in (raw.logits, raw.deltas)]
        (alone,) = rule(RawOutput(*own, LATTICE, raw.coder), SIZES[image : image + 1], NAMES)
        assert torch.equal(alone.boxes, together[image].boxes) and torch.equal(alone.scores, together[image].scores)


class Watched:
    """A coder that counts what it is asked for."""

    def __init__(self):
        self.rows = []

    def decode(self, deltas, anchors):
        self.rows.append(len(deltas))
        return BoxCoder().decode(deltas, anchors)


@pytest.mark.parametrize("topk", [5, 100, 10_000])
def test_only_survivors_are_decoded(topk):
    raw, watched = raw_output(6), Watched()
    Postprocess(topk=topk)(RawOutput(raw.logits, raw.deltas, LATTICE, watched), SIZES, NAMES)
    threshold = math.log(0.05 / 0.95)
    above = [int((level[image] > threshold).sum()) for image in range(3) for level in raw.logits]
    assert watched.rows == [min(count, topk) for count in above]
    assert max(above) > 100


def test_nothing_found():
    raw = raw_output(7)
    silent = RawOutput(tuple(x - 50 for x in raw.logits), raw.deltas, LATTICE, raw.coder)
    for found in Postprocess()(silent, SIZES, NAMES):
        assert found.boxes.shape == (0, 4) and found.scores.shape == found.labels.shape == (0,)
        assert found.labels.dtype == torch.int64 and found.class_names == NAMES


def test_numbers_that_are_none_give_no_detection():
    raw = raw_output(8)
    for broken in (
        RawOutput(tuple(x * math.nan for x in raw.logits), raw.deltas, LATTICE, raw.coder),
        RawOutput(raw.logits, tuple(x * math.nan for x in raw.deltas), LATTICE, raw.coder),
    ):
        assert [len(found) for found in Postprocess(score=0)(broken, SIZES, NAMES)] == [0, 0, 0]


def test_boxes_end_at_the_content():
    for found, (height, width) in zip(Postprocess()(raw_output(9), SIZES, NAMES), SIZES.tolist(), strict=True):
        assert len(found) and (found.boxes >= 0).all()
        assert (found.boxes[:, 0::2] <= width).all() and (found.boxes[:, 1::2] <= height).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.scores.diff() <= 0).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"score": -0.1}, "score threshold must be at least 0 and below 1, got -0.1"),
        ({"score": 1.0}, "score threshold"),
        ({"score": math.nan}, "score threshold"),
        ({"nms": 0.0}, "NMS threshold is an IoU above 0 and at most 1, got 0.0"),
        ({"nms": 1.1}, "NMS threshold"),
        ({"topk": 0}, "topk and max_detections are at least 1, got 0 and 100"),
        ({"max_detections": 0}, "topk and max_detections are at least 1, got 1000 and 0"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(UserError, match=match):
        Postprocess(**options)
