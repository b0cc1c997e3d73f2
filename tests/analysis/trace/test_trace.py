"""The trace of an image against constructed cases, Postprocess itself, and a dense account of every entry."""

import json
import math
from dataclasses import replace

import pytest
import torch

from retinanet.analysis.trace import trace as module
from retinanet.analysis.trace.outcomes import FOUND, GATES
from retinanet.analysis.trace.trace import trace
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.geometry import iou
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Matcher
from retinanet.evaluation.matching import match_image
from retinanet.model.postprocess import Postprocess, PostprocessCompat
from retinanet.types import Detections, RawOutput, Target

PLAIN = AnchorLattice(strides=(8, 16), sizes=(20, 40), ratios=(1.0,), scales=(1.0,))
NAMES, SIZE = ("ant", "bee", "cow"), (64, 96)
ANT, BEE, COW = range(3)


class Verbatim:
    """A coder whose deltas are the boxes."""

    def decode(self, deltas, anchors):
        return deltas.float()


def scene(*entries, silence=-9.0):
    """Raw outputs of one image that say only this: (level, row, column, box, {label: logit})."""
    grids = PLAIN.grids(*SIZE)
    logits = [torch.full((1, 3, *grid), silence) for grid in grids]
    deltas = [torch.zeros(1, 4, *grid) for grid in grids]
    for level, row, column, box, scores in entries:
        deltas[level][0, :, row, column] = torch.tensor(box, dtype=torch.float32)
        for label, logit in scores.items():
            logits[level][0, label, row, column] = logit
    return RawOutput(tuple(logits), tuple(deltas), PLAIN, Verbatim())


def objects(*rows):
    """A target of (box, label) or (box, label, ignored)."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float64).reshape(-1, 4)
    labels = torch.tensor([row[1] for row in rows], dtype=torch.int64)
    return Target(boxes, labels, torch.tensor([len(row) > 2 and row[2] for row in rows], dtype=torch.bool))


def traced(raw, target, **rule):
    return trace(raw, 0, target, SIZE, Postprocess(**rule), class_names=NAMES)


HERE = (10, 10, 30, 30)  # an anchor of level 0 lies exactly there: row 2, column 2 is centred at (20, 20)
ASIDE = (14, 10, 34, 30)  # IoU 2/3 with it
FAR = (60, 30, 80, 50)


def test_found():
    result = traced(scene((0, 2, 2, ASIDE, {ANT: 2.0}), (1, 1, 1, HERE, {ANT: 1.0, BEE: 0.5})), objects((HERE, ANT)))
    (one,) = result.boxes
    assert one.gate == "found" and one.found and one.by.detection == 0 and one.by.matched == 0
    assert (
        one.by.box == ASIDE and one.by.iou == pytest.approx(2 / 3) and one.by.score == pytest.approx(0.8808, abs=1e-4)
    )
    assert (one.best.anchor.level, one.best.anchor.row, one.best.anchor.column) == (0, 2, 2)
    assert one.localising == 2 and one.best.logit == 2.0 and one.best.anchor.name == "P3"
    assert one.best.anchor.box == HERE and one.best_anchor_iou == 1.0
    kinds = [(d.kind, d.matched, d.anchor.name) for d in result.detections]
    assert kinds == [("hit", 0, "P3"), ("classification", None, "P4")]  # the ant of P4 went under the first


def test_no_anchor():
    speck = (18, 18, 22, 22)  # IoU 16 / 400 with the nine anchors that contain it, all forced
    (one,) = traced(scene(), objects((speck, ANT))).boxes
    assert one.gate == "no anchor" and one.best is None and one.localising == 0 and one.by is None
    assert len(one.anchors) == 9 and all(a.forced and a.iou == pytest.approx(0.04) for a in one.anchors)
    assert one.best_anchor_iou == pytest.approx(0.04)
    for forced, count in (("off", 0), ("argmax", 9)):
        (one,) = trace(scene(), 0, objects((speck, ANT)), SIZE, Postprocess(), Matcher(forced=forced)).boxes
        assert one.gate == "no anchor" and len(one.anchors) == count
    lenient = Matcher(background=0.03, foreground=0.03)
    (one,) = trace(scene(), 0, objects((speck, ANT)), SIZE, Postprocess(), lenient).boxes
    assert one.gate == "never localised"


def test_never_localised():
    beside = (20, 10, 40, 30)  # IoU 1/3
    result = traced(scene((0, 2, 2, beside, {ANT: 3.0})), objects((HERE, ANT)))
    (one,) = result.boxes
    assert one.gate == "never localised" and one.best is None and one.anchors[0].iou == 1.0
    assert [d.kind for d in result.detections] == ["localisation"]
    assert result.detections[0].iou == pytest.approx(1 / 3)


def test_below_threshold():
    raw = scene((0, 2, 2, HERE, {ANT: -4.0}), (0, 2, 3, ASIDE, {ANT: -3.5}))
    (one,) = traced(raw, objects((HERE, ANT))).boxes
    assert one.gate == "below threshold" and one.best.logit == -3.5 and one.best == one.furthest
    assert one.best.score == pytest.approx(1 / (1 + math.exp(3.5))) and one.best.anchor.column == 3
    assert traced(raw, objects((HERE, ANT)), score=0.02).boxes[0].gate == "found"


@pytest.mark.parametrize(("own", "gate"), [(-9.0, "wrong class"), (-2.0, "found")])
def test_wrong_class(own, gate):
    result = traced(scene((0, 2, 2, HERE, {ANT: own, COW: 1.0})), objects((HERE, ANT)))
    (one,) = result.boxes
    assert one.gate == gate and one.best.logit == own
    if gate == "wrong class":
        assert (one.by.label, one.by.detection, one.by.matched) == (COW, 0, None)
        assert result.detections[0].kind == "classification"


def test_a_detection_of_another_class_that_is_right_explains_nothing():
    target = objects((HERE, ANT), (HERE, COW))
    result = traced(scene((0, 2, 2, HERE, {COW: 1.0})), target)
    assert [one.gate for one in result.boxes] == ["below threshold", "found"]


def test_cut_by_topk():
    raw = scene((0, 2, 2, HERE, {ANT: 0.0}), (0, 6, 9, FAR, {ANT: 2.0, BEE: 1.0, COW: 3.0}))
    (one,) = traced(raw, objects((HERE, ANT)), topk=3).boxes
    assert one.gate == "cut by top-k" and one.furthest.logit == 0.0
    assert traced(raw, objects((HERE, ANT)), topk=4).boxes[0].gate == "found"
    elsewhere = scene((1, 1, 1, HERE, {ANT: 0.0}), (0, 6, 9, FAR, {ANT: 2.0, BEE: 1.0, COW: 3.0}))
    assert traced(elsewhere, objects((HERE, ANT)), topk=3).boxes[0].gate == "found"  # each level has its own


def test_suppressed_under_the_detection_of_a_neighbour():
    neighbour, between = (16, 10, 36, 30), (13, 10, 33, 30)  # IoU 7/13 of the objects
    raw = scene((0, 2, 2, between, {ANT: 1.0}), (0, 2, 3, neighbour, {ANT: 2.0}))
    target = objects((HERE, ANT), (neighbour, ANT))
    result = traced(raw, target)
    one, other = result.boxes
    assert (one.gate, other.gate) == ("suppressed by NMS", "found")
    assert one.furthest.box == between and one.furthest.logit == 1.0
    assert one.by.box == neighbour and (one.by.detection, one.by.matched) == (0, 1)
    assert one.by.iou == pytest.approx(14 * 20 / (2 * 400 - 14 * 20))
    assert [one.gate for one in traced(raw, target, nms=0.8).boxes] == ["found", "found"]


def test_suppressed_under_a_false_positive_and_under_another_class():
    off = (16, 16, 36, 36)  # IoU below a half with the object, above it with its box
    on = (13, 13, 33, 33)
    raw = scene((0, 2, 2, on, {ANT: 1.0}), (0, 3, 3, off, {BEE: 2.0}))
    (one,) = traced(raw, objects((HERE, ANT)), class_agnostic=True).boxes
    assert one.gate == "suppressed by NMS" and (one.by.label, one.by.matched) == (BEE, None)
    assert traced(raw, objects((HERE, ANT))).boxes[0].gate == "found"
    raw = scene((0, 2, 2, on, {ANT: 1.0}), (0, 3, 3, off, {ANT: 2.0}))
    result = traced(raw, objects((HERE, ANT)))
    assert result.boxes[0].gate == "suppressed by NMS" and result.detections[0].kind == "localisation"


def test_shared_detection():
    twice = (11, 10, 31, 30)
    result = traced(scene((0, 2, 2, HERE, {ANT: 1.0})), objects((twice, ANT), (HERE, ANT)))
    one, other = result.boxes
    assert (one.gate, other.gate) == ("shared detection", "found")
    assert (one.by.detection, one.by.matched) == (0, 1) and one.furthest.box == HERE


def test_cut_by_the_cap():
    raw = scene((0, 2, 2, HERE, {ANT: 0.0}), (0, 6, 9, FAR, {ANT: 2.0, BEE: 1.0}))
    (one,) = traced(raw, objects((HERE, ANT)), max_detections=2).boxes
    assert one.gate == "cut by the cap" and one.furthest.score == 0.5
    assert traced(raw, objects((HERE, ANT)), max_detections=3).boxes[0].gate == "found"


def test_a_box_outside_the_image_suppresses_or_not():
    """Clipped, the better box is another one, or nothing: it is no detection, and whether it suppresses is ``clip``."""
    object_, beyond = (86, 10, 96, 30), (97, 10, 107, 30)
    box = (86, 10, 110, 30)
    raw = scene((0, 2, 11, box, {ANT: 1.0}), (0, 2, 10, beyond, {ANT: 2.0}))
    gates = {
        clip: traced(raw, objects((object_, ANT)), compat=PostprocessCompat(clip), nms=0.3).boxes[0]
        for clip in ("before", "after")
    }
    assert gates["before"].gate == "found" and gates["after"].gate == "suppressed by NMS"
    assert (
        gates["after"].by.detection is None
        and "no detection itself"
        in traced(raw, objects((object_, ANT)), compat=PostprocessCompat("after"), nms=0.3).summary()
    )


def test_ignore_regions_are_not_traced_and_excuse_detections():
    raw = scene((0, 2, 2, HERE, {ANT: 1.0}), (0, 3, 3, (12, 12, 28, 28), {ANT: 0.9, BEE: 0.8}))
    result = traced(raw, objects(((0, 0, 40, 40), ANT, True), (FAR, COW)), nms=0.99)
    assert [(one.index, one.label) for one in result.boxes] == [(1, COW)]
    assert [(d.label, d.kind) for d in result.detections] == [(ANT, "ignored"), (ANT, "ignored"), (BEE, "background")]


def test_false_positives_are_named_as_tide_does():
    raw = scene(
        (0, 2, 2, HERE, {ANT: 3.0}),
        (0, 0, 0, (10, 10, 30, 28), {ANT: 2.5}),  # duplicate
        (0, 2, 4, (22, 10, 42, 30), {ANT: 2.0, BEE: 1.5}),  # IoU 1/4: localisation, both
        (0, 2, 1, (10, 11, 30, 30), {COW: 1.0}),  # classification
        (0, 6, 9, FAR, {ANT: 0.5}),  # background
    )
    result = traced(raw, objects((HERE, ANT)), nms=0.99)
    kinds = [d.kind for d in result.detections]
    assert kinds == ["hit", "duplicate", "localisation", "both", "classification", "background"]
    assert "5 false positives" in result.summary()


def test_boxes_are_told_in_pixels_of_the_original_image():
    raw = scene((0, 2, 2, ASIDE, {ANT: 2.0}))
    target = objects((HERE, ANT))
    plain = traced(raw, target)
    scaled = trace(raw, 0, target, SIZE, Postprocess(), original=(128, 288))
    for one, other in zip(
        (plain.boxes[0].box, plain.boxes[0].best.box, plain.detections[0].anchor.box),
        (scaled.boxes[0].box, scaled.boxes[0].best.box, scaled.detections[0].anchor.box),
        strict=True,
    ):
        assert other == pytest.approx([one[0] * 3, one[1] * 2, one[2] * 3, one[3] * 2])
    assert scaled.size == (128, 288) and scaled.class_names == ("0", "1", "2")


def test_an_image_without_objects_or_detections():
    empty = traced(scene(), Target.empty())
    assert empty.boxes == empty.detections == () and "0 of 0 boxes found by 0 detections" in empty.summary()
    (one,) = traced(scene(silence=math.nan), objects((HERE, ANT))).boxes
    assert one.gate == "never localised"


def test_logits_that_are_no_numbers_are_below_every_threshold():
    for value in (-math.inf, math.nan):
        raw = scene((0, 2, 2, HERE, {ANT: value}), silence=-math.inf)
        result = traced(raw, objects((HERE, ANT)), score=0.0)
        (one,) = result.boxes
        assert one.gate == "below threshold" and one.localising == 1 and one.best.score == 0.0
        assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["counts"] == {"below threshold": 1}


def test_every_gate_has_words():
    assert [gate for gate in GATES if not GATES[gate].remedy] == [FOUND]
    result = traced(scene((0, 2, 2, HERE, {COW: 1.0})), objects((HERE, ANT), (FAR, BEE)))
    lines = result.summary().splitlines()
    assert lines[0] == "0 of 2 boxes found by 1 detections" and len(lines) == 4
    assert lines[1].startswith("  #0 ant at (10, 10, 30, 30): wrong class: a detection is there as cow 0.73 (IoU 1.00")
    for one in result.boxes:
        for gate in GATES:
            assert result.explain(replace(one, gate=gate)).startswith(gate)


# --- random outputs ---------------------------------------------------------------------------------------------------

LATTICE = AnchorLattice(strides=(8, 16, 32), sizes=(20, 40, 80), ratios=(0.5, 2.0), scales=(1.0, 1.4))
RULES = [
    Postprocess(),
    Postprocess(score=0.3, topk=15, nms=0.3, max_detections=10),
    Postprocess(topk=40, class_agnostic=True),
    Postprocess(score=0, topk=60, max_detections=40, nms=0.6, compat=PostprocessCompat("after")),
    Postprocess(topk=40, class_agnostic=True, nms=0.3, max_detections=20, compat=PostprocessCompat("after", True)),
    Postprocess(score=0.2, topk=30, max_detections=15, compat=PostprocessCompat("half")),
    Postprocess(score=0.1, topk=30, compat=PostprocessCompat("half", True)),
    Postprocess(score=0.9, topk=1, max_detections=1),
]


def random_outputs(seed, dtype=torch.float32, steps=None):
    generator = torch.Generator().manual_seed(seed)
    grids = LATTICE.grids(64, 96)
    logits = [torch.randn(2, 12, *grid, generator=generator) * 2 - 3 for grid in grids]
    deltas = [torch.randn(2, 16, *grid, generator=generator) * 0.8 for grid in grids]
    if steps:
        logits = [(level * steps).round() / steps for level in logits]
    return RawOutput(tuple(x.to(dtype) for x in logits), tuple(x.to(dtype) for x in deltas), LATTICE, BoxCoder())


def random_target(seed, size):
    generator = torch.Generator().manual_seed(seed)
    corner, side = torch.rand(25, 2, generator=generator), torch.rand(25, 2, generator=generator) ** 2
    limit = torch.tensor([size[1], size[0]])
    low = corner * limit * 0.8
    boxes = torch.cat([low, torch.minimum(low + 3 + side * 60, limit)], dim=1)
    ignore = torch.arange(25) % 8 == 7
    return Target(boxes.double(), torch.randint(3, (25,), generator=generator), ignore)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_detections_are_those_of_postprocess(rule, seed):
    raw = random_outputs(seed, steps=1 if seed == 1 else None, dtype=torch.bfloat16 if seed == 2 else torch.float32)
    sizes = torch.tensor([[64, 96], [50, 41]])
    for image, (expected, size) in enumerate(zip(rule(raw, sizes, NAMES), sizes.tolist(), strict=True)):
        result = trace(raw, image, random_target(seed, size), tuple(size), rule)
        assert [d.box for d in result.detections] == [tuple(box) for box in expected.boxes.tolist()]
        assert [d.score for d in result.detections] == expected.scores.tolist()
        assert [d.label for d in result.detections] == expected.labels.tolist()
        for d in result.detections:  # the anchor that is named gives this score
            level = raw.logits[d.anchor.level][image].float().sigmoid()
            score = float(level[d.anchor.template * 3 + d.label, d.anchor.row, d.anchor.column])
            assert score == pytest.approx(d.score, rel=1e-6)
    assert len(expected) or rule.score == 0.9


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_every_suppressed_candidate_has_its_suppressor(rule):
    candidates = rule.find_candidates(random_outputs(3), 0, (64, 96))
    suppressed = (candidates.fate == 2).nonzero()[:, 0].tolist()
    for i in suppressed:
        by = candidates.suppressor(i)
        assert by in candidates.kept.tolist() and candidates.scores[by] >= candidates.scores[i]
        assert rule.class_agnostic or candidates.labels[by] == candidates.labels[i]
        assert iou(candidates.compared[i][None], candidates.compared[by][None]) > rule.nms
        better = [k for k in candidates.kept.tolist() if k != by and candidates.scores[k] > candidates.scores[by]]
        same = [k for k in better if rule.class_agnostic or candidates.labels[k] == candidates.labels[i]]
        assert not (iou(candidates.compared[i][None], candidates.compared[same]) > rule.nms).any()
    assert suppressed or rule.topk == 1


def account(raw, image, target, size, rule):
    """The gates by the letter of the definition, from every entry of the image, one by one."""
    threshold = math.log(rule.score / (1 - rule.score)) if rule.score else -math.inf
    entries = []  # [label, logit, box, stage]
    for level, logits in enumerate(raw.logits):
        grid = logits.shape[-2:]
        index = torch.arange(LATTICE.count([grid]))
        y, x, a = index // 4 // grid[1], index // 4 % grid[1], index % 4
        anchors = LATTICE.boxes_at(torch.full_like(index, level), y, x, a)
        deltas = raw.deltas[level][image].reshape(4, 4, *grid)[a, :, y, x]
        boxes = raw.coder.decode(deltas, anchors)
        order = sorted(range(len(index) * 3), key=lambda i: (int(a[i // 3]), i % 3, int(y[i // 3]), int(x[i // 3])))
        here = [[i % 3, float(logits[image].reshape(4, 3, *grid)[a[i // 3], i % 3, y[i // 3], x[i // 3]]),
                 boxes[i // 3], "below"] for i in order]  # fmt: skip
        passed = sorted((e for e in here if e[1] > threshold), key=lambda e: -e[1])
        for rank, entry in enumerate(passed):
            entry[3] = "topk" if rank >= rule.topk else "candidate"
        entries += here
    limit = torch.tensor([size[1], size[0]] * 2)
    far = torch.tensor([96.0, 64.0])
    kept = []
    for entry in sorted((e for e in entries if e[3] == "candidate"), key=lambda e: -e[1]):
        shown = entry[2].clamp(min=0).minimum(limit)
        nothing = not rule.compat.keep_empty and not bool((shown[2:] > shown[:2]).all())
        seen = {"before": shown, "after": entry[2]}.get(
            rule.compat.clip, torch.cat([entry[2][:2].clamp(min=0), entry[2][2:].minimum(far)])
        )
        same = [other for other, k, _ in kept if rule.class_agnostic or k == entry[0]]
        if nothing and rule.compat.clip == "before":
            entry[3] = "outside"
        elif same and bool((iou(seen[None], torch.stack(same)) > rule.nms).any()):
            entry[3] = "suppressed"
        else:
            kept.append((seen, entry[0], entry))
            entry[3] = "cap" if len(kept) > rule.max_detections else "outside" if nothing else "detection"
    final = [e for _, _, e in kept if e[3] == "detection"]
    boxes = torch.stack([e[2].clamp(min=0).minimum(limit) for e in final]) if final else torch.zeros(0, 4)
    found = Detections(boxes, torch.tensor([e[1] for e in final]).sigmoid(), torch.tensor([e[0] for e in final]), NAMES)
    target = Target(target.boxes.float(), target.labels, target.ignore)
    _, false, missed = match_image(found, target)
    gates = {}
    match = Matcher()(LATTICE, raw.grids, target.boxes, target.ignore)
    anchors = LATTICE.boxes(match.positive, raw.grids)
    everything = torch.stack([e[2].clamp(min=0).minimum(limit) for e in entries])
    for row in (~target.ignore).nonzero()[:, 0].tolist():
        box = target.boxes[row][None]
        place = (iou(everything, box)[:, 0] >= 0.5).nonzero()[:, 0].tolist()
        stages = {entries[i][3] for i in place if entries[i][0] == target.labels[row]}
        mine = iou(anchors[match.box == row], box)
        others = iou(boxes[false], box) >= 0.5 if len(false) else torch.zeros(0)
        gates[row] = (
            "found" if row not in missed.tolist()
            else "cut by the cap" if "cap" in stages
            else "suppressed by NMS" if "suppressed" in stages
            else "shared detection" if "detection" in stages
            else "cut by top-k" if "topk" in stages
            else "wrong class" if bool(others.any())
            else "below threshold" if place
            else "never localised" if bool((mine >= 0.4).any())
            else "no anchor"
        )  # fmt: skip
    return gates


def test_the_gates_are_those_of_a_dense_account():
    seen = set()
    for seed, rule in enumerate([*RULES, Postprocess(score=0.6, topk=3), Postprocess(score=0.5)]):
        raw, size = random_outputs(seed), ((64, 96), (50, 41))[seed % 2]
        target = random_target(seed + 7, size)
        result = trace(raw, 1, target, size, rule)
        assert {one.index: one.gate for one in result.boxes} == account(raw, 1, target, size, rule), rule
        seen.update(one.gate for one in result.boxes)
    assert seen == set(GATES) - {"shared detection"}, "the seeds show every gate but the rarest"


def test_the_search_is_that_of_a_dense_account(monkeypatch):
    """The best entry in place, and how many there are, also where the objects come in portions of one."""
    monkeypatch.setattr(module, "PAIRS", 1)
    raw, target = random_outputs(11), random_target(12, (64, 96))
    result = trace(raw, 0, target, (64, 96), Postprocess())
    index = torch.arange(LATTICE.count(raw.grids))
    level, y, x, a = LATTICE.locate(index, raw.grids)
    anchors = LATTICE.boxes(index, raw.grids)
    deltas = torch.cat([d[0].reshape(4, 4, *d.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 4) for d in raw.deltas])
    logits = torch.cat([d[0].reshape(4, 3, *d.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 3) for d in raw.logits])
    boxes = raw.coder.decode(deltas, anchors).clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
    checked = 0
    for one in result.boxes:
        box = target.boxes[one.index][None].float()
        place = iou(boxes, box)[:, 0] >= 0.5
        assert one.localising == int(place.sum())
        assert one.best_anchor_iou == pytest.approx(float(iou(anchors, box).max()), abs=1e-6)
        if one.best:
            best = int(logits[:, one.label].where(place, -torch.inf).argmax())
            where = one.best.anchor
            assert [where.level, where.row, where.column, where.template] == [int(v[best]) for v in (level, y, x, a)]
            assert one.best.logit == float(logits[best, one.label]) and one.best.box == tuple(boxes[best].tolist())
            checked += 1
    assert checked > 5
    match = Matcher()(LATTICE, raw.grids, target.boxes, target.ignore)
    for one in result.boxes:
        expected = sorted(match.positive[match.box == one.index].tolist())
        places = [(a.anchor.level, a.anchor.row, a.anchor.column, a.anchor.template) for a in one.anchors]
        columns = [torch.tensor(column, dtype=torch.int64) for column in zip(*places, strict=True)]
        assert sorted(LATTICE.index(*columns, raw.grids).tolist() if places else []) == expected
        assert all(a.forced == (a.iou < 0.5) for a in one.anchors)
