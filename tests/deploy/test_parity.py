"""What the proof of an export calls the same, and what it does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from retinanet.deploy.graph import DetectionModule, RawModule
from retinanet.deploy.parity import compare, compare_raw, proof_batches
from retinanet.images.preprocess import Preprocess
from retinanet.model.postprocess import Postprocess
from retinanet.spec import ModelSpec
from retinanet.types import Detections

RULE = Preprocess(short=64, long=128)
POST = Postprocess(score=0.1, nms=0.5, max_detections=4)
BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 70]])
SCORES = torch.tensor([0.9, 0.5, 0.2])


class Said:
    """Stands in for a detector that finds given boxes in every image."""

    class_names = ("a", "b")

    def __init__(self, boxes, scores, labels, post=POST):
        self.found = Detections(boxes, scores, labels, self.class_names)
        self.rule = post

    def raw(self, batch):
        return len(batch.images)

    @property
    def spec(self):
        return ModelSpec(self.class_names, postprocess=self.postprocess)

    @property
    def postprocess(self):
        outer = self

        class Rule(Postprocess):
            def __call__(self, raw, sizes, class_names):
                return [outer.found] * raw

        return Rule(**vars(outer.rule))


def graph_of(boxes, scores, labels, most=6):
    """A graph that finds given boxes in every image."""

    def graph(images, sizes):
        rows = [np.zeros((len(images), most, *part.shape[1:]), part.numpy().dtype) for part in (boxes, scores, labels)]
        for row, part in zip(rows, (boxes, scores, labels), strict=True):
            row[:, : len(part)] = part
        return [*rows, np.full(len(images), len(boxes))]

    return graph


@pytest.fixture(scope="module")
def batches():
    return proof_batches(RULE)[:1]


def compared(batches, *, boxes=BOXES, scores=SCORES, labels=(0, 1, 0), ours=None, post=POST):
    ours = ours or (BOXES, SCORES, torch.tensor([0, 1, 0]))
    return compare(Said(*ours, post=post), graph_of(boxes, scores, torch.as_tensor(labels)), batches)


def test_the_same(batches):
    proof = compared(batches)
    assert proof.equal and (proof.detections, proof.matched, proof.unmatched) == (3, 3, 0)
    assert proof.pixels == proof.score == 0 and (proof.certain, proof.sure) == (2, 1.0)
    assert "3 of 3 detections match, 0 only in one of both" in str(proof) and "1 x 3 x 64 x 96" in str(proof)


@pytest.mark.parametrize(("by", "equal"), [(0.05, True), (0.2, False), (1.0, False)])
def test_boxes_that_are_off(batches, by, equal):
    proof = compared(batches, boxes=BOXES + torch.tensor([0, 0, 0, by]))
    assert proof.equal == equal and proof.pixels == pytest.approx(by, rel=1e-4) and proof.unmatched == 0


@pytest.mark.parametrize(("by", "equal"), [(0.0005, True), (0.01, False)])
def test_scores_that_are_off(batches, by, equal):
    proof = compared(batches, scores=SCORES - by)
    assert proof.equal == equal and proof.score == pytest.approx(by, rel=1e-3) and proof.unmatched == 0


def test_another_class(batches):
    proof = compared(batches, labels=(0, 0, 0))
    assert not proof.equal and (proof.matched, proof.unmatched) == (2, 2) and proof.sure == 0.5


def test_boxes_far_away_do_not_match(batches):
    proof = compared(batches, boxes=BOXES + 5)
    assert (proof.matched, proof.unmatched) == (0, 6) and not proof.equal


@pytest.mark.parametrize(("score", "unmatched"), [(0.1004, 0), (0.15, 1)])
@pytest.mark.parametrize("mine", [True, False])
def test_one_more_at_the_score_threshold(batches, score, unmatched, mine):
    """A rounding may decide whether it is one; anything above the threshold has to be in both."""
    more = (torch.cat([BOXES, torch.tensor([[80.0, 0, 90, 9]])]), torch.cat([SCORES, torch.tensor([score])]))
    if mine:
        proof = compared(batches, ours=(*more, torch.tensor([0, 1, 0, 1])))
    else:
        proof = compared(batches, boxes=more[0], scores=more[1], labels=(0, 1, 0, 1))
    assert proof.unmatched == unmatched and proof.equal == (unmatched == 0)


@pytest.mark.parametrize(("score", "unmatched"), [(0.2004, 0), (0.3, 1)])
def test_another_one_at_the_cut(batches, score, unmatched):
    """Both have as many as there may be, and the last of one is not the last of the other."""
    post = replace(POST, max_detections=3)
    scores = torch.tensor([0.9, 0.5, score])
    far = torch.cat([BOXES[:2], torch.tensor([[80.0, 0, 90, 9]])])
    assert compared(batches, boxes=far, scores=scores, post=post).unmatched == unmatched


@pytest.mark.parametrize(("width", "unmatched"), [(5.004, 0), (6.0, 1), (3.0, 1)])
def test_one_more_at_the_overlap_of_suppression(batches, width, unmatched):
    """A box inside the first one, of half its area: IoU 0.5."""
    boxes = torch.cat([BOXES, torch.tensor([[0.0, 0, width, 10]])])
    proof = compared(batches, boxes=boxes, scores=torch.tensor([0.9, 0.5, 0.2, 0.6]), labels=(0, 1, 0, 0))
    assert proof.unmatched == unmatched


@pytest.mark.parametrize("part", ["boxes", "scores"])
def test_numbers_that_are_none_are_never_the_same(batches, part):
    spoilt = {"boxes": BOXES.clone(), "scores": SCORES.clone()}
    spoilt[part][0] = torch.nan
    assert not compared(batches, **spoilt).equal
    assert not compared(batches, ours=(spoilt["boxes"], spoilt["scores"], torch.tensor([0, 1, 0]))).equal


def test_nothing_found_is_said(batches):
    nothing = (torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    proof = compare(Said(*nothing), graph_of(*nothing), batches)
    assert proof.equal and np.isnan(proof.sure) and "nothing was found that could differ" in str(proof)
    assert "pass --verify DATA" in proof.roughly()


def as_graph(module):
    """A module called as a runtime is."""

    def graph(images, sizes):
        with torch.inference_mode():
            return [out.numpy() for out in module(torch.from_numpy(images), torch.from_numpy(sizes))]

    return graph


@pytest.mark.parametrize(("change", "equal"), [({}, True), ({"score": 0.01}, False), ({"pixels": 1.0}, False)])
def test_a_real_detector(detector, change, equal):
    run = as_graph(DetectionModule(detector))

    def graph(images, sizes):
        boxes, scores, labels, count = run(images, sizes)
        return boxes + change.get("pixels", 0), scores + change.get("score", 0), labels, count

    proof = compare(detector, graph, proof_batches(detector.spec.preprocess))
    assert proof.equal == equal and proof.detections > 100


@pytest.mark.parametrize("off", [0.0, 0.1])
def test_raw_outputs(detector, off):
    run = as_graph(RawModule(detector))
    proof = compare_raw(
        detector, lambda *given: [out + off for out in run(*given)], proof_batches(detector.spec.preprocess)
    )
    assert proof.equal == (off == 0) and proof.logits == pytest.approx(off, abs=1e-3)
    assert proof.deltas == pytest.approx(off, abs=1e-3) and proof.sure > 0.4


def test_raw_outputs_that_are_no_numbers(detector):
    run = as_graph(RawModule(detector))
    proof = compare_raw(detector, lambda *given: [out * np.nan for out in run(*given)], proof_batches(RULE)[:1])
    assert not proof.equal and proof.logits == proof.deltas == np.inf


def test_what_it_is_tried_on():
    """One image and two of different sizes, an empty one among them; the user's images, if there are any, as well."""
    batches = proof_batches(RULE)
    shapes = {tuple(batch.images.shape) for batch in batches}
    assert len(shapes) == len(batches) == 3 and {len(batch.images) for batch in batches} == {1, 2}
    assert any(batch.images.min() >= 96 and batch.images.max() < 160 for batch in batches)  # nothing but grain
    assert any(len({tuple(size) for size in batch.sizes.tolist()}) == 2 for batch in batches)
    mine = [torch.full((3, 64, 64 + 32 * n), n, dtype=torch.uint8) for n in range(4)]
    more = proof_batches(RULE, mine)[3:]
    assert [tuple(batch.images.shape) for batch in more] == [(1, 3, 64, 64), (1, 3, 64, 96), (2, 3, 64, 128)]
