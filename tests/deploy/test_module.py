"""The traceable module against the parts of the package that it repeats without sizes that depend on the pixels."""

from dataclasses import replace

import pytest
import torch

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.deploy.graph import DetectionModule, RawModule, trace
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.model.postprocess import Postprocess, PostprocessCompat

RULE = Preprocess(short=96, long=256)


def pictures(*sizes):
    """Coarse noise, so that the backbone has something to see at every scale."""
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(0, 256, (3, -(-height // 8), -(-width // 8)), dtype=torch.uint8, generator=generator)
        .repeat_interleave(8, 1)
        .repeat_interleave(8, 2)[:, :height, :width]
        for height, width in sizes
    ]


def undo_swaps(boxes, wanted, scores):
    """The order of the wanted boxes (D, 4) that is nearest to ``boxes``; only those of equal scores, as far as they are
    exact, change places."""
    if not len(boxes):
        return torch.arange(0)
    gap = (boxes[:, None] - wanted[None]).abs().amax(dim=2)
    gap[(scores[:, None] - scores[None]).abs() > 2e-5] = torch.inf
    order = gap.argmin(dim=1)
    return order if len(order.unique()) == len(order) else torch.arange(len(order))


def assert_same(detector, images, fewest=1):
    """The module's rows are the detections of the network and of ``Postprocess``; how many there are."""
    batch, sizes = detector.spec.preprocess.pad([detector.spec.preprocess.resize(image) for image in images])
    module = DetectionModule(detector)
    with torch.inference_mode():
        raw = detector.net(detector.spec.preprocess.normalise(batch, sizes))
        wanted = detector.spec.postprocess(raw, sizes, detector.spec.class_names)
        boxes, scores, labels, count = module(batch, sizes)
    most = detector.spec.postprocess.max_detections
    assert boxes.shape == (len(images), most, 4) and scores.shape == labels.shape == (len(images), most)
    assert count.dtype == labels.dtype == torch.int64 and count.tolist() == [len(one) for one in wanted]
    for n, one in enumerate(wanted):
        found = int(count[n])
        torch.testing.assert_close(scores[n, :found], one.scores, rtol=0, atol=1e-5)
        order = undo_swaps(boxes[n, :found], one.boxes, one.scores)
        torch.testing.assert_close(boxes[n, :found], one.boxes[order], rtol=0, atol=2e-3)
        assert torch.equal(labels[n, :found], one.labels[order])
        assert not boxes[n, found:].any() and not scores[n, found:].any() and not labels[n, found:].any()
    assert int(count.sum()) >= fewest, "too few detections to show anything"
    return count.tolist()


POST = Postprocess(score=0.1, topk=200, max_detections=60)
CHANGES = {
    "before": {},
    "after": {"compat": PostprocessCompat("after")},
    "half": {"compat": PostprocessCompat("half")},
    "empty kept": {"compat": PostprocessCompat(keep_empty=True)},
    "empty kept after": {"compat": PostprocessCompat("after", True)},
    "empty kept half": {"compat": PostprocessCompat("half", True)},
    "agnostic": {"class_agnostic": True},
    "vote": {"vote": 0.6},
    "cut in a level": {"topk": 13},
    "one candidate": {"topk": 1, "max_detections": 3},
    "cut at the end": {"max_detections": 5},
    "cut before clipping": {"max_detections": 5, "compat": PostprocessCompat("after")},
    "hardly any suppression": {"nms": 0.95},
    "hardly any overlap": {"nms": 0.05},
    "no threshold": {"score": 0.0},
    "a crowd": {"score": 0.02, "nms": 0.7, "topk": 4000, "max_detections": 2000, "vote": 0.6},
    "more than there are": {"score": 0.0, "topk": 5000, "max_detections": 40},
}


@pytest.fixture(scope="module")
def tiny_detectors(build):
    """Detectors of one and of three classes; ``build`` of the folder's conftest makes others."""
    return {count: build(names=tuple("abc")[:count], rule=RULE, post=POST) for count in (1, 3)}


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_post_processing(tiny_detectors, classes, change):
    detector = tiny_detectors[classes].with_spec(postprocess=replace(POST, **change))
    assert_same(detector, pictures((96, 150), (130, 96)), fewest=2)


def test_the_switches_matter(tiny_detectors):
    """Each of these changes what is found, so none of the tests above passes for nothing."""
    batch, sizes = RULE.pad(pictures((96, 150), (130, 96)))
    detector = tiny_detectors[3]
    with torch.inference_mode():
        raw = detector.net(RULE.normalise(batch, sizes))
        found = {}
        for name in ("before", "after", "half", "agnostic", "cut in a level", "hardly any overlap", "cut at the end"):
            one = replace(POST, **CHANGES[name])(raw, sizes, detector.spec.class_names)
            found[name] = [row for part in one for row in part.boxes.tolist()]
    assert [name for name in found if found[name] == found["before"]] == ["before"]


RULES = {
    "BGR": {"compat": PreprocessCompat(channels="BGR"), "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)},
    "bytes": {"compat": PreprocessCompat(divisor=1.0), "mean": (103.5, 116.3, 123.7), "std": (57.4, 57.1, 58.4)},
    "normalised": {"compat": PreprocessCompat(resampling="normalised")},
    "normalised BGR": {"compat": PreprocessCompat(resampling="normalised", channels="BGR"), "mean": (0.4, 0.5, 0.6)},
    "margin": {"compat": PreprocessCompat(margin=1)},
    "multiple": {"multiple": 64},
}


@pytest.mark.parametrize("change", RULES.values(), ids=RULES)
def test_preprocessing(tiny_detectors, change):
    detector = tiny_detectors[3].with_spec(preprocess=replace(RULE, **change))
    assert_same(detector, pictures((96, 150), (120, 200)))


SIZES = (24.0, 48.0, 96.0, 192.0, 384.0)
LATTICES = {
    "floor strides": {"compat": LatticeCompat(floor_strides=True)},
    "corners": {"compat": LatticeCompat(rounding="corners"), "offset": 0.0},
    "cells": {"compat": LatticeCompat(rounding="cell", inclusive=True)},
    "inclusive": {"compat": LatticeCompat(inclusive=True)},
    "other anchors": {"sizes": SIZES, "ratios": (0.3, 1.0), "scales": (1.0, 1.4), "offset": 0.25},
}


@pytest.mark.parametrize("change", LATTICES.values(), ids=LATTICES)
def test_anchors(build, change):
    detector = build(names=("a", "b"), rule=RULE, post=POST, anchors=AnchorLattice(**change))
    assert_same(detector, pictures((96, 150), (130, 100)))


@pytest.mark.parametrize(
    "coder", [BoxCoder(std=(0.1, 0.1, 0.2, 0.2)), BoxCoder(clamp=0.2), BoxCoder((1,) * 4, 0.1, True)]
)
def test_coders(build, coder):
    assert_same(build(names=("a", "b"), rule=RULE, post=POST, coder=coder), pictures((96, 150), (130, 100)))


def test_a_blank_picture_and_a_batch_of_very_different_sizes(tiny_detectors):
    blank = torch.full((3, 100, 96), 128, dtype=torch.uint8)
    counts = assert_same(tiny_detectors[1], [*pictures((96, 250)), blank, *pictures((250, 96), (96, 96))])
    assert len(counts) == 4


@pytest.mark.parametrize("size", [(20, 20), (32, 32), (33, 90), (20, 250)])
def test_small_pictures(build, size):
    """Where the coarse levels have one cell, and all levels together fewer anchors than ``topk``."""
    detector = build(names=("a", "b"), rule=Preprocess(short=20, long=250), post=replace(POST, score=0.02))
    assert_same(detector, pictures(size))


def test_nothing_is_found(tiny_detectors):
    detector = tiny_detectors[3].with_spec(postprocess=replace(POST, score=0.999))
    assert assert_same(detector, pictures((96, 96), (96, 120)), fewest=0) == [0, 0]


@pytest.mark.parametrize(
    "rule",
    [
        RULE,
        *(replace(RULE, compat=PreprocessCompat(**one)) for one in ({"channels": "BGR"}, {"resampling": "normalised"})),
    ],
)
def test_raw_outputs(tiny_detectors, rule):
    detector = tiny_detectors[3].with_spec(preprocess=rule)
    before = {key: value.clone() for key, value in detector.net.state_dict().items()}
    batch, sizes = rule.pad([rule.resize(image) for image in pictures((96, 150), (120, 100))])
    module = RawModule(detector)
    with torch.inference_mode():
        raw = detector.net(rule.normalise(batch, sizes))
        found = module(batch, sizes)
    assert module.outputs == (*(f"logits_{n}" for n in range(5)), *(f"deltas_{n}" for n in range(5)))
    for one, other in zip((*raw.logits, *raw.deltas), found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(before[key], value) for key, value in detector.net.state_dict().items())


def test_lower_precision_is_near(tiny_detectors):
    batch, sizes = RULE.pad(pictures((96, 150)))
    with torch.inference_mode():
        raw = tiny_detectors[3].net(RULE.normalise(batch, sizes))
        found = RawModule(tiny_detectors[3], torch.bfloat16)(batch, sizes)
        boxes, scores, *_ = DetectionModule(tiny_detectors[3], torch.bfloat16)(batch, sizes)
    for one, other in zip((*raw.logits, *raw.deltas), found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.1 * float(one.std()) + 0.05)  # 8 bits
    assert boxes.dtype == scores.dtype == found[0].dtype == torch.float32


def test_images_padded_to_other_multiples_are_refused(tiny_detectors):
    detector = tiny_detectors[1].with_spec(preprocess=replace(RULE, multiple=16))
    with pytest.raises(
        UserError, match=r"multiples of 32; this one pads to multiples of 16\. Set preprocess\.multiple"
    ):
        trace(DetectionModule(detector))


@pytest.mark.parametrize(
    "change",
    [{"compat": PostprocessCompat("half")}, {"compat": PostprocessCompat("after", True)}],
    ids=["half", "after"],
)
def test_a_traced_module_knows_no_size(tiny_detectors, change):
    """At a size that is not that of the example it was traced with; yhenon's and odtk's models clip by half."""
    module = DetectionModule(tiny_detectors[3].with_spec(postprocess=replace(POST, **change)))
    program = trace(module).module(check_guards=False)
    rule = tiny_detectors[3].spec.preprocess
    batch, sizes = rule.pad([rule.resize(image) for image in pictures((300, 420), (420, 300))])
    assert tuple(batch.shape[2:]) != (192, 256)
    with torch.inference_mode():
        for found, wanted in zip(program(batch, sizes), module(batch, sizes), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-3)
