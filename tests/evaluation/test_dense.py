"""A scene of 1,500 objects through post-processing: the caps of a model decide what AP can be."""

from pathlib import Path

import pytest
import torch

from retinanet.anchors.atss import ATSS
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.data.scenes import GLYPHS, plan_scene
from retinanet.evaluation.coco import coco_metrics
from retinanet.model.postprocess import Postprocess
from retinanet.types import RawOutput, Sample, Target

SIZE, NAMES = (1024, 1024), tuple(glyph.name for glyph in GLYPHS)
LATTICE = AnchorLattice(sizes=(16, 32, 64, 128, 256))


@pytest.fixture(scope="module")
def dense():
    """A scene as a sample, and raw outputs that say it: the anchors that ATSS matches, surer where they fit better."""
    scene = plan_scene(0, "dense", 0, SIZE, 1500)
    boxes, labels = torch.from_numpy(scene.boxes), torch.tensor([thing.label for thing in scene.things])
    target = Target(boxes, labels, torch.zeros(len(labels), dtype=torch.bool))
    grids, classes, coder = LATTICE.grids(*SIZE), len(NAMES), BoxCoder()
    match = ATSS()(LATTICE, grids, boxes, target.ignore)
    level, y, x, a = LATTICE.locate(match.positive, grids)
    dice = torch.Generator().manual_seed(0)
    logits = [torch.full((1, LATTICE.num_anchors * classes, *grid), -8.0) for grid in grids]
    deltas = [torch.zeros(1, LATTICE.num_anchors * 4, *grid) for grid in grids]
    delta = coder.encode(boxes[match.box], LATTICE.boxes(match.positive, grids))
    doubt = torch.rand(len(level), 1, generator=dice)
    delta += 0.05 * doubt * torch.randn(delta.shape, generator=dice)
    score = 3 - 7 * doubt[:, 0]
    for at, row, column, template, box, moves, sure in zip(level, y, x, a, match.box, delta, score, strict=True):
        logits[at][0, template * classes + labels[box], row, column] = sure
        deltas[at][0, template * 4 : template * 4 + 4, row, column] = moves
    areas = torch.from_numpy(scene.areas)
    raw = RawOutput(tuple(logits), tuple(deltas), LATTICE, coder)
    return Sample(Path("dense.png"), 1, SIZE, target, areas), raw


def measure(dense, **caps):
    sample, raw = dense
    rule = Postprocess(**caps)
    found = rule(raw, torch.tensor([SIZE]), NAMES)
    return coco_metrics([sample], found, NAMES, cap=rule.max_detections)


@pytest.mark.parametrize("vote", [0.0, 0.65])
def test_a_cap_above_the_objects_costs_no_ap(dense, vote):
    free = measure(dense, vote=vote, max_detections=10**6, topk=10**6)
    capped = measure(dense, vote=vote, max_detections=2000, topk=10_000)
    assert free.boxes == 1500 and free.ap > 0.8
    assert capped.ap == pytest.approx(free.ap, abs=0.01) and capped.limit == 2000


def test_the_usual_caps_lose_most_of_it(dense):
    usual = measure(dense)
    assert usual.detections == 100 and usual.limit == 100 and usual.ap == usual.ap100 < 0.15
    more = measure(dense, max_detections=2000, topk=10_000)
    assert 0.1 < more.ap100 < more.ap - 0.1  # 600 of the objects are discs
