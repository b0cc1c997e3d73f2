"""Post-processing against a plain, dense one: every anchor scored, decoded and sorted, suppression in a Python loop."""

import math

import pytest
import torch
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.anchors.nms import vote
from retinanet.errors import UserError
from retinanet.model.postprocess import Postprocess, PostprocessCompat
from retinanet.types import RawOutput

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
    return common and common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


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


def shown(rows, size, rule):
    """Boxes cut off at the edges of the content; those of which nothing is left are dropped, or not."""
    height, width = size
    cut = [
        (logit, label, [max(0, min(box[i], (width, height)[i % 2])) for i in range(4)]) for logit, label, box in rows
    ]
    return [row for row in cut if rule.compat.keep_empty or (row[2][2] > row[2][0] and row[2][3] > row[2][1])]


def dense(raw, image, size, rule):
    """(score, label, box) of the detections of an image."""
    threshold = math.log(rule.score / (1 - rule.score)) if rule.score else -math.inf
    candidates = []
    for level in range(len(raw.logits)):
        found = [row for row in dense_level(raw.logits[level][image], raw.deltas[level][image], level)
                 if row[0] > threshold]  # fmt: skip
        chosen = sorted(range(len(found)), key=lambda i, found=found: (-found[i][0], i))[: rule.topk]
        candidates += [found[i] for i in sorted(chosen)]
    voters = sorted(shown(candidates, size, rule), key=lambda row: -row[0])[: max(1000, 5 * rule.max_detections)]
    if rule.compat.clip == "before":
        candidates = shown(candidates, size, rule)
    elif rule.compat.clip == "half":
        candidates = [
            (logit, label, [max(0, x1), max(0, y1), min(96, x2), min(64, y2)])
            for logit, label, (x1, y1, x2, y2) in candidates
        ]
    kept = []
    for logit, label, box in sorted(candidates, key=lambda row: -row[0]):
        if all(overlap(box, other) <= rule.nms for _, k, other in kept if rule.class_agnostic or k == label):
            kept.append((logit, label, box))
    kept = kept[: rule.max_detections]
    if rule.compat.clip != "before":
        kept = shown(kept, size, rule)
    if rule.vote:
        kept = [(logit, label, voted(label, box, voters, rule.vote)) for logit, label, box in kept]
    return [(1 / (1 + math.exp(-logit)), label, box) for logit, label, box in kept]


def voted(label, box, voters, threshold):
    """The mean of the boxes of a class that overlap a box, by their scores."""
    votes = [
        (1 / (1 + math.exp(-logit)), other)
        for logit, k, other in voters
        if k == label and overlap(box, other) >= threshold
    ]
    total = sum(weight for weight, _ in votes)
    return [sum(weight * other[i] for weight, other in votes) / total for i in range(4)] if votes else box


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
        Postprocess(vote=0.65),
        Postprocess(score=0.01, vote=0.4, nms=0.6, class_agnostic=True, max_detections=300),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_dense_way(rule, seed):
    found = assert_equals_dense(raw_output(seed), rule)
    assert any(len(one) for one in found)


def far_out(seed):
    """Boxes partly and wholly outside their image, beyond each of its edges."""
    raw = raw_output(seed)
    return RawOutput(raw.logits, tuple(level * 2 for level in raw.deltas), LATTICE, raw.coder)


@pytest.mark.parametrize("clip", ["before", "after", "half"])
@pytest.mark.parametrize("keep_empty", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_clipping_equals_the_dense_way(clip, keep_empty, seed):
    raw = far_out(seed)
    for options in ({}, {"topk": 40, "class_agnostic": True, "nms": 0.3}, {"max_detections": 15, "score": 0.3}):
        rule = Postprocess(compat=PostprocessCompat(clip, keep_empty), **options)
        found = assert_equals_dense(raw, rule)
        empty = [int((one.boxes[:, 2:] <= one.boxes[:, :2]).any(dim=1).sum()) for one in found]
        assert all(empty) if keep_empty else not any(empty)
        if clip != "before" and "max_detections" in options:  # those that are dropped have taken a place
            assert [len(one) for one in found] == [15] * 3 if keep_empty else min(map(len, found)) < 15
        for one, (height, width) in zip(found, SIZES.tolist(), strict=True):
            limit = torch.tensor([width, height, width, height])
            assert (one.boxes >= 0).all() and (one.boxes <= limit).all()


class Verbatim:
    """A coder whose deltas are the boxes."""

    def decode(self, deltas, anchors):
        return deltas


@pytest.mark.parametrize(
    ("width", "box", "other", "kept"),
    [
        (50, (30, 0, 50, 20), (30, 0, 90, 20), {"before": 1, "after": 2, "half": 2}),  # beyond the content
        (96, (80, 0, 96, 20), (80, 0, 140, 20), {"before": 1, "after": 2, "half": 1}),  # beyond the padding
        (96, (0, 0, 20, 20), (-40, 0, 20, 20), {"before": 1, "after": 2, "half": 1}),  # beyond the left edge
        (96, (0, 0, 20, 20), (0, -40, 20, 20), {"before": 1, "after": 2, "half": 1}),  # beyond the top
        (96, (0, 0, 20, 20), (100, 0, 140, 20), {"before": 1, "after": 1, "half": 1}),  # nothing is left of one
    ],
)
def test_what_lies_outside_counts_for_suppression_or_not(width, box, other, kept):
    """Two boxes of one class that overlap by more than a half inside the image, and by a third in all."""
    logits, deltas = torch.full((1, A * K, 8, 12), -9.0), torch.zeros(1, A * 4, 8, 12)
    logits[0, 0, 0, 0], logits[0, 0, 0, 1] = 2.0, 1.0
    deltas[0, :4, 0, 0], deltas[0, :4, 0, 1] = torch.tensor(box), torch.tensor(other)
    raw = RawOutput((logits,), (deltas,), LATTICE, Verbatim())
    inside = [[max(0, x1), max(0, y1), min(width, x2), min(64, y2)] for x1, y1, x2, y2 in (box, other)]
    for clip, count in kept.items():
        (found,) = Postprocess(compat=PostprocessCompat(clip))(raw, torch.tensor([[64, width]]), NAMES)
        assert found.boxes.tolist() == inside[:count], clip


@pytest.mark.parametrize("seed", range(3))
def test_keep_empty_is_torchvisions_postprocessing(seed):
    lattice = AnchorLattice(offset=0, compat=LatticeCompat(rounding="corners", floor_strides=True)).over(96, 160)
    generator, grids = torch.Generator().manual_seed(seed), lattice.grids(96, 160)
    logits = tuple(torch.randn(2, 9 * K, *grid, generator=generator) * 2 - 3 for grid in grids)
    deltas = tuple(torch.randn(2, 9 * 4, *grid, generator=generator) for grid in grids)
    raw, sizes = RawOutput(logits, deltas, lattice, BoxCoder()), torch.tensor([[96, 160], [41, 66]])

    backbone = torch.nn.Identity()
    backbone.out_channels = 8
    theirs = TorchvisionRetinaNet(backbone, num_classes=K, topk_candidates=200)
    rows = [
        [level.unflatten(1, (9, size)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels]
        for levels, size in ((logits, K), (deltas, 4))
    ]
    every = lattice.boxes(torch.arange(lattice.count(grids)), grids).split([9 * h * w for h, w in grids])
    outputs = {"cls_logits": rows[0], "bbox_regression": rows[1]}
    expected = theirs.postprocess_detections(outputs, [list(every)] * 2, [tuple(size) for size in sizes.tolist()])

    found = Postprocess(topk=200, max_detections=300, compat=PostprocessCompat(keep_empty=True))(raw, sizes, NAMES)
    for one, other in zip(found, expected, strict=True):
        assert one.labels.tolist() == other["labels"].tolist()
        torch.testing.assert_close(one.scores, other["scores"], rtol=0, atol=1e-6)
        torch.testing.assert_close(one.boxes, other["boxes"], rtol=0, atol=1e-3)
    assert (found[1].boxes[:, 2:] <= found[1].boxes[:, :2]).any() and len(found[0]) > 100


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
    above = [[int((level[image] > threshold).sum()) for level in raw.logits] for image in range(3)]
    assert watched.rows == [sum(min(count, topk) for count in levels) for levels in above]
    assert max(map(max, above)) > 100


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
    with pytest.raises(UserError, match=r"compat\.clip is before, after or half, got 'never'"):
        PostprocessCompat(clip="never")


@pytest.mark.parametrize("clip", ["before", "after", "half"])
def test_votes_are_of_what_is_shown(clip):
    rule = Postprocess(vote=0.5, nms=0.7, compat=PostprocessCompat(clip=clip))
    plain = Postprocess(nms=0.7, compat=PostprocessCompat(clip=clip))
    raw = far_out(3)
    moved = 0
    for one, other in zip(assert_equals_dense(raw, rule), plain(raw, SIZES, NAMES), strict=True):
        assert torch.equal(one.scores, other.scores) and torch.equal(one.labels, other.labels)
        moved += int((one.boxes != other.boxes).any(dim=1).sum())
    assert moved > 10


def test_without_rivals_a_box_stays_where_it_is():
    boxes, scores, labels = (
        torch.tensor([[0.0, 0, 9, 9], [40, 40, 50, 60]]),
        torch.tensor([0.9, 0.2]),
        torch.tensor([0, 1]),
    )
    assert torch.allclose(vote(boxes, labels, boxes, scores, labels, 0.5), boxes)
    nobody = vote(boxes, labels, boxes[:0], scores[:0], labels[:0], 0.5)
    assert torch.equal(nobody, boxes)


def test_what_is_no_candidate_does_not_reach_a_box():
    """Exported graphs have rows without a candidate, of score 0, whatever their box is; and far pixels stay exact."""
    boxes = torch.tensor([[1300.0, 10, 1332.4, 40], [math.nan] * 4, [math.inf] * 4])
    scores, labels = torch.tensor([0.7, 0.0, 0.0]), torch.zeros(3, dtype=torch.int64)
    assert torch.equal(vote(boxes[:1], labels[:1], boxes, scores, labels, 0.5), boxes[:1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vote(boxes[:1], labels[:1], boxes, scores, labels, 0.5), boxes[:1])


@pytest.mark.parametrize("vote", [-0.1, 1.1, math.nan])
def test_a_vote_is_an_iou(vote):
    with pytest.raises(UserError, match=r"vote is an IoU from 0 \(off\) to 1"):
        Postprocess(vote=vote)
