"""The anchor audit against all boxes by all anchors, against the matcher, and against what the loader makes."""

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.analysis.anchors import audit as module
from retinanet.analysis.anchors.audit import audit
from retinanet.analysis.anchors.report import section
from retinanet.anchors.geometry import iou
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.anchors.matching import Matcher
from retinanet.data.dataset import load_dataset
from retinanet.data.loader import evaluation_batches
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.plotting.html import render_page
from retinanet.types import Sample, Target

SMALL = AnchorLattice(sizes=(8, 16, 32, 64, 128))


def make_sample(number, size, boxes, labels=None, ignore=None):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels, dtype=torch.int64)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore, dtype=torch.bool)
    return Sample(Path(f"{number}.png"), number, size, Target(boxes, labels, ignore), (boxes[:, 2] - boxes[:, 0]))


def random_samples(seed, images=4, most=12):
    """Boxes of many sizes and shapes, some of them twice, aligned with the cells, ignored, or without an area."""
    dice = random.Random(seed)
    samples = []
    for number in range(images):
        size = dice.choice(((60, 80), (80, 60), (97, 97)))
        boxes = []
        for _ in range(dice.randint(0, most)):
            if boxes and dice.random() < 0.2:
                boxes.append(dice.choice(boxes))
                continue
            x, y = dice.uniform(0, size[1] - 2), dice.uniform(0, size[0] - 2)
            width, height = (math.exp(dice.uniform(0, 4)) for _ in range(2))
            if dice.random() < 0.2:
                x, y, width, height = (8 * round(v / 8) for v in (x, y, width, height))
            boxes.append([x, y, min(x + width, size[1]), min(y + height, size[0])])
        labels = [dice.randrange(3) for _ in boxes]
        samples.append(make_sample(number, size, boxes, labels, [dice.random() < 0.15 for _ in boxes]))
    return samples


def as_trained(sample, preprocess, lattice):
    """Its objects in float32 pixels of the input, the lattice, and the grids, by the definition."""
    height, width = preprocess.size(*sample.size)
    factor = torch.tensor([width / sample.size[1], height / sample.size[0]]).repeat(2)
    boxes = (sample.target.boxes * factor).float()[~sample.target.ignore]
    step, margin = preprocess.multiple, preprocess.compat.margin
    padded = [math.ceil((side + margin) / step) * step for side in (height, width)]
    over = lattice.over(*padded)
    return boxes, over, over.grids(*padded)


def brute_force(samples, lattice, preprocess, matcher):
    """Best IoU, level and positives of every object from matrices, and the number of anchors."""
    found, anchors = [], 0
    for sample in samples:
        boxes, over, grids = as_trained(sample, preprocess, lattice)
        every = over.boxes(torch.arange(over.count(grids)), grids)
        anchors += len(every)
        match = matcher(over, grids, boxes, torch.zeros(len(boxes), dtype=torch.bool))
        positives = torch.bincount(match.box, minlength=len(boxes)).tolist()
        for row, count in zip(iou(boxes, every), positives, strict=True):
            best = float(row.max())
            found.append((best, int(over.locate(row.argmax()[None], grids)[0]) if best > 0 else -1, count))
    return found, anchors


def random_layout(seed):
    dice = random.Random(seed)
    lattice = AnchorLattice(
        sizes=dice.choice(((32, 64, 128, 256, 512), (8, 16, 32, 64, 128), (5, 9, 20, 40, 90))),
        ratios=dice.choice(((0.5, 1.0, 2.0), (0.2, 1.0))),
        offset=dice.choice((0.0, 0.5)),
        compat=LatticeCompat(
            rounding=dice.choice(("none", "corners", "cell")),
            inclusive=dice.random() < 0.3,
            floor_strides=dice.random() < 0.3,
        ),
    )
    preprocess = Preprocess(
        short=dice.choice((48, 64, 100)),
        long=130,
        multiple=dice.choice((1, 32)),
        compat=PreprocessCompat(margin=dice.choice((0, 1))),
    )
    forced = dice.choice(("argmax", "reassign", "off"))
    matcher = Matcher(dice.choice((0.4, 0.5, 0.7)), dice.choice((0.3, 0.4)), forced, dice.choice((0, 0, 0.2, 0.45)))
    return lattice, preprocess, matcher


@pytest.mark.parametrize("seed", range(15))
def test_equals_all_boxes_by_all_anchors(seed):
    lattice, preprocess, matcher = random_layout(seed)
    samples = random_samples(seed, most=(3, 12, 40)[seed % 3])
    found = audit(samples, ("a", "b", "c"), lattice=lattice, preprocess=preprocess, matcher=matcher)
    expected, anchors = brute_force(samples, lattice, preprocess, matcher)
    assert list(zip(found.best_iou.tolist(), found.level.tolist(), found.positives.tolist(), strict=True)) == expected
    assert found.anchors == anchors and len(found.inputs) == len(samples)
    assert found.labels.tolist() == [k for s in samples for k in s.target.labels[~s.target.ignore].tolist()]


def test_in_pieces_it_is_the_same(monkeypatch):
    samples = random_samples(3, images=12)
    how = {"lattice": SMALL, "preprocess": Preprocess(short=64, long=96)}
    whole = audit(samples, "abc", **how)
    monkeypatch.setattr(module, "MATCHED", 5)
    parts = audit(samples, "abc", **how)
    for name in ("best_iou", "level", "positives"):
        assert np.array_equal(getattr(whole, name), getattr(parts, name))


def test_sizes_are_those_of_training(data):
    dataset = load_dataset(data, "train")
    preprocess = Preprocess(short=50, long=90)
    found = audit(dataset.samples, dataset.class_names, lattice=SMALL, preprocess=preprocess)
    rows, anchors = [], 0
    order = range(len(dataset))
    for _, batch in evaluation_batches(dataset, preprocess=preprocess, batch_size=1, indices=order):
        target = batch.targets[0]
        rows.append((target.boxes[:, 2:] - target.boxes[:, :2])[~target.ignore])
        anchors += SMALL.count(SMALL.grids(*batch.images.shape[-2:]))
    assert np.array_equal(found.sides, torch.cat(rows).numpy()) and found.anchors == anchors


def test_a_case_by_hand():
    """An anchor of 32 x 32 is centred on (36, 36). One box is that anchor, the other far too small."""
    lattice = AnchorLattice(strides=(8,), sizes=(32,), ratios=(1,), scales=(1,))
    sample = make_sample(0, (64, 64), [[20, 20, 52, 52], [4, 4, 8, 8]], [0, 1])
    found = audit([sample], ("disc", "dot"), lattice=lattice, preprocess=Preprocess(short=64, long=64))
    assert found.best_iou.tolist() == [1.0, 16 / 1024]
    assert found.anchors == 64 and found.below(0.5) == 0.5
    # Shifted by 8 along one side the IoU is 24/40 = 0.6, along both 576/1472: five anchors reach 0.5. The dot lies in
    # the nine anchors centred on 4, 12 and 20 both ways, which are forced; but four of them overlap the disc more.
    assert found.positives.tolist() == [5 + 4, 9 - 4] and found.forced.tolist() == [False, True]
    assert found.positives_share == 14 / 64
    assert [group.name for group in found.tables["class"]] == ["disc", "dot"]
    assert "50.0% of 2 boxes have none at IoU 0.5, 50.0% none at 0.4; 7.0 positives per box" in found.summary()
    assert "21.875% of the anchors are positive, one in 5" in found.summary()


def test_tables_add_up():
    samples = random_samples(5, images=30)
    how = {"lattice": SMALL, "preprocess": Preprocess(short=100, long=130), "matcher": Matcher(forced_iou=0.2)}
    found = audit(samples, ("a", "b", "c", "never"), **how)
    assert set(found.tables) == {"size", "octave", "shape", "class", "level"}
    assert found.positives.sum() > 50 and sum(found.to_dict()["histogram"]) == len(found)
    for name, groups in found.tables.items():
        groups = [group for group in groups if group.boxes or name != "class"]
        counts = np.array([group.boxes for group in groups])
        assert counts.min() > 0 and counts.sum() == len(found)
        for field, total in (
            ("positives", found.positives.sum()),
            ("below_foreground", (found.best_iou < 0.5).sum()),
            ("below_background", (found.best_iou < 0.4).sum()),
            ("best_iou", found.best_iou.astype(float).sum()),
            ("forced", found.forced.sum()),
            ("none", (found.positives == 0).sum()),
        ):
            assert np.array([getattr(group, field) for group in groups]) @ counts == pytest.approx(total)
    assert {group.name: group.boxes for group in found.tables["class"]} == {
        **{name: Counter(found.labels.tolist())[i] for i, name in enumerate("abc")},
        "never": 0,
    }


def test_groups_are_named_by_the_size_after_the_resize():
    sample = make_sample(0, (50, 50), [[0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 4, 48], [0, 0, 48, 10]])
    found = audit([sample], ("a",), lattice=SMALL, preprocess=Preprocess(short=100, long=100))
    sides = {group.name: group.boxes for group in found.tables["size"]}
    assert sides == {"small, below 32": 2, "medium": 2}  # 20, 80, sqrt(8 * 96) = 27.7 and sqrt(96 * 20) = 43.8
    assert {g.name: g.boxes for g in found.tables["octave"]} == {"16 to 32": 2, "32 to 64": 1, "64 to 128": 1}
    shapes = {group.name: group.boxes for group in found.tables["shape"]}
    assert shapes == {"wide, 4:1 to 8:1": 1, "about square": 2, "taller than 1:8": 1}


def test_boxes_that_no_anchor_overlaps():
    """With spacing cut down to 1 pixel the anchors lie in a corner; and a box without an area overlaps nothing."""
    lattice = AnchorLattice(strides=(8,), sizes=(8,), ratios=(1,), scales=(1,), compat=LatticeCompat(spacing=((1, 1),)))
    sample = make_sample(0, (64, 64), [[40, 40, 50, 50], [3, 3, 3, 9], [0, 0, 8, 8]])
    found = audit([sample], ("a",), lattice=lattice, preprocess=Preprocess(short=64, long=64))
    assert found.best_iou.tolist()[:2] == [0, 0] and found.best_iou[2] > 0.5
    assert found.level.tolist() == [-1, -1, 0] and found.positives.tolist()[:2] == [0, 0]
    assert [(group.name, group.boxes) for group in found.tables["level"]] == [
        ("no anchor overlaps", 2),
        ("stride 8, size 8", 1),
    ]
    assert "2 boxes have no anchor that answers for them" in found.summary()


@pytest.mark.parametrize(
    "samples", [[], [make_sample(0, (50, 60), [])], random_samples(7)], ids=["none", "empty", "some"]
)
def test_everything_can_be_told_of_any_data(samples):
    found = audit(samples, ("a", "b", "c"), lattice=SMALL, preprocess=Preprocess(short=64, long=96))
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["boxes"] == len(found) and sum(told["histogram"]) == len(found)
    assert (told["below_foreground"] is None) == (not len(found))
    assert [row["name"] for row in told["tables"]["class"]] == ["a", "b", "c"]
    page = render_page("audit", [section(found)], {})
    assert "no boxes to audit" in page if not len(found) else page.count("<img") == 3
