"""TIDE's types and costs: a case worked out by hand, and the evaluator's AP of data that were really fixed."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retinanet.analysis.errors.tide import FALSE, SPECIAL, TYPES, analyse_errors
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.matching import find_overlaps
from retinanet.types import Target

NAMES = ("a", "b", "c")
A, B = 0, 1


def by_image(result, detections):
    """What became of each image, its detections and objects by their rows."""
    overlaps = result.overlaps
    images = []
    for index, found in enumerate(detections):
        kinds, partners = ["left out"] * len(found), [-1] * len(found)
        for d in np.flatnonzero(overlaps.image == index):
            kinds[overlaps.row[d]] = result.kind[d]
            partners[overlaps.row[d]] = int(np.append(overlaps.truth_row, -1)[result.partner[d]])
        there = overlaps.truth_image == index
        missed, unmatched = (tuple(overlaps.truth_row[there & part]) for part in (result.missed, result.unmatched))
        images.append(SimpleNamespace(kinds=tuple(kinds), partners=tuple(partners), missed=missed, unmatched=unmatched))
    return images


def at(x, width=100):
    """A square of side 100; one moved by s overlaps it by (100 - s) / (100 + s): 20 -> 2/3, 50 -> 1/3, 90 -> 0.053."""
    return [x, 0, x + width, 100]


@pytest.fixture
def by_hand(make_sample, make_detections):
    """One image with every type. Objects 0, 1, 2 and 4 are of class a, 3 of class b, 5 is a crowd of class a."""
    sample = make_sample(
        [at(0), at(1000), at(2000), at(3000), at(4000), at(5000, 400)], [A, A, A, B, A, A], [False] * 5 + [True]
    )
    rows = [
        (at(0), 0.95, A, "hit", 0),
        (at(20), 0.90, A, "duplicate", 0),  # 2/3 with an object that a better one has found
        (at(3020), 0.85, A, "classification", 3),  # 2/3 with an object of class b
        (at(1050), 0.80, A, "localisation", 1),  # 1/3 with an object of its class
        (at(2050), 0.75, B, "both", 2),  # 1/3 with an object of class a
        (at(8000), 0.70, A, "background", -1),  # near nothing
        (at(5100), 0.65, A, "ignored", 5),  # wholly in the crowd
        (at(4090), 0.60, B, "background", -1),  # 0.053 with an object: under 0.1
        (at(3050), 0.55, B, "localisation", 3),  # 1/3 with an object of its class; the one of 0.85 is better
    ]
    boxes, scores, labels, kinds, partners = zip(*rows, strict=True)
    return [sample], [make_detections(boxes, scores, labels, NAMES[:2])], kinds, partners


def test_types_and_partners_worked_out_by_hand(by_hand):
    samples, detections, kinds, partners = by_hand
    result = analyse_errors(find_overlaps(samples, detections, NAMES[:2]))
    (image,) = by_image(result, detections)
    assert image.kinds == kinds and image.partners == partners
    # object 1 and 3 have a localisation and a classification error; a "both" error fixes nothing, so 2 is missed
    assert image.unmatched == (1, 2, 3, 4) and image.missed == (2, 4)
    assert {kind: number.tolist() for kind, number in result.counts.items()} == {
        "classification": [1, 0],
        "localisation": [1, 1],
        "both": [0, 1],
        "duplicate": [1, 0],
        "background": [1, 1],
        "missed": [2, 0],
    }
    assert result.objects.tolist() == [4, 1] and result.hits.tolist() == [1, 0]


def test_costs_worked_out_by_hand(by_hand):
    """Class a: hit, false, false, false, false of 4 objects; recall 1/4 at precision 1: 26 of 101 points; b: 0."""
    result = analyse_errors(find_overlaps(*by_hand[:2], NAMES[:2]))
    assert result.ap50 == pytest.approx(26 / 101 / 2, abs=1e-12)
    expected = {
        "classification": (0, 1),  # the one of 0.85 leads class b: hit, false, false, false of 1 object
        "localisation": (25 * 0.5 / 101, 0),  # the 4th of class a is a hit: precision 2/4 at the recalls 0.26 .. 0.50
        "both": (0, 0),
        "duplicate": (0, 0),
        "background": (0, 0),
        "missed": (25 / 101, 0),  # 1 of 2 objects: recall 1/2
        "false positives": (0, 0),
        "false negatives": (75 / 101, 0),  # 1 of 1; no object of class b is left, but false detections are
    }
    for kind, changes in expected.items():
        np.testing.assert_allclose(result.dap_by_class[kind], changes, rtol=0, atol=1e-12, err_msg=kind)
        assert result.dap[kind] == pytest.approx(sum(changes) / 2, abs=1e-12)
    assert result.all_fixed == 1


@pytest.mark.parametrize(("kind", "box"), [("duplicate", at(20)), ("both", at(3050)), ("background", at(9000))])
def test_removing_a_false_detection_between_two_hits(make_sample, make_detections, kind, box):
    """Precision 2/3 at the upper 50 recalls becomes 1."""
    samples = [make_sample([at(0), at(1000), at(3000)], [A, A, B])]
    found = [make_detections([at(0), box, at(1000)], [0.9, 0.8, 0.7], [A] * 3)]
    result = analyse_errors(find_overlaps(samples, found, NAMES))
    assert by_image(result, found)[0].kinds == ("hit", kind, "hit")
    assert result.dap_by_class[kind][A] == pytest.approx(50 / 3 / 101, abs=1e-12)
    assert result.dap[kind] == pytest.approx(
        50 / 3 / 101 / 2, abs=1e-12
    )  # class c has no object and is not in the mean
    others = set(TYPES) - {kind, "missed"}
    assert all(result.dap[other] == 0 for other in others)
    assert result.dap["missed"] == pytest.approx(0.5)  # class b: no object and no detection left
    assert result.all_fixed == 1


def test_the_first_of_several_types(make_sample, make_detections):
    """Objects of a and b at one place: a second a is taken for a wrong class; near its own class it is a bad box."""
    samples = [make_sample([at(0), at(10)], [A, B])]
    found = [make_detections([at(0), at(20), at(60), at(10)], [0.9, 0.8, 0.7, 0.6], [A, A, A, B])]
    result = analyse_errors(find_overlaps(samples, found, NAMES))
    assert by_image(result, found)[0].kinds == ("hit", "classification", "localisation", "hit")
    # both objects have been found, so the two can only be removed, which changes nothing
    assert by_image(result, found)[0].missed == () and result.ap50 == 1 and set(result.dap.values()) == {0.0}


def write_fixed_copy(samples, detections, result, types):
    """The data as the oracles leave them, with real boxes, labels and objects."""
    fixed_samples, fixed_detections = [], []
    for sample, found, image in zip(samples, detections, by_image(result, detections), strict=True):
        best = {}
        for row in np.argsort(-found.scores.numpy(), kind="stable").tolist():
            if image.kinds[row] in ("classification", "localisation"):
                best.setdefault(image.partners[row], row)
        boxes, labels, keep = found.boxes.clone(), found.labels.clone(), []
        for row, (kind, partner) in enumerate(zip(image.kinds, image.partners, strict=True)):
            if kind in types and best.get(partner) == row and partner in image.unmatched:
                boxes[row], labels[row] = sample.target.boxes[partner].float(), sample.target.labels[partner]
                keep.append(row)
            elif kind not in types:
                keep.append(row)
        there = [row for row in range(len(sample.target)) if not (row in image.missed and "missed" in types)]
        target = Target(*(column[there] for column in vars(sample.target).values()))
        fixed_samples.append(replace(sample, target=target, areas=sample.areas[there]))
        fixed_detections.append(replace(found, boxes=boxes[keep], scores=found.scores[keep], labels=labels[keep]))
    return fixed_samples, fixed_detections


@pytest.mark.parametrize("seed", range(3))
def test_costs_equal_the_evaluator_on_fixed_data(make_scene, seed):
    samples, detections = make_scene(seed, images=20)
    result = analyse_errors(find_overlaps(samples, detections, NAMES))
    assert result.ap50 == pytest.approx(coco_metrics(samples, detections, NAMES).ap50, abs=1e-9)
    for kind in TYPES:
        assert result.counts[kind].sum() > 3
        fixed = write_fixed_copy(samples, detections, result, (kind,))
        expected = coco_metrics(*fixed, NAMES).ap50
        assert result.ap50 + result.dap[kind] == pytest.approx(expected, abs=1e-9), kind
    hits = [
        replace(d, boxes=d.boxes[k], scores=d.scores[k], labels=d.labels[k])
        for d, image in zip(detections, by_image(result, detections), strict=True)
        for k in [torch.tensor([kind == "hit" for kind in image.kinds])]
    ]
    removed = result.ap50 + result.dap["false positives"]
    assert removed == pytest.approx(coco_metrics(samples, hits, NAMES).ap50, abs=1e-9)
    assert result.all_fixed == 1
    assert coco_metrics(*write_fixed_copy(samples, detections, result, TYPES), NAMES).ap50 == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_every_detection_and_object_is_accounted_for(make_scene, seed):
    samples, detections = make_scene(seed, ties=True)
    result = analyse_errors(find_overlaps(samples, detections, NAMES))
    images = by_image(result, detections)
    kinds = [kind for image in images for kind in image.kinds]
    assert len(kinds) == sum(map(len, detections))
    for kind in FALSE:
        assert kinds.count(kind) == result.counts[kind].sum()
    assert kinds.count("hit") == result.hits.sum()
    assert result.hits.sum() + sum(len(image.unmatched) for image in images) == result.objects.sum()
    assert result.counts["missed"].sum() == sum(len(image.missed) for image in images)


def test_all_detections_are_judged(make_sample, make_detections):
    found = make_detections([at(0)] * 101, np.linspace(0.9, 0.1, 101), [A] * 101)
    (image,) = by_image(analyse_errors(find_overlaps([make_sample([at(0)], [A])], [found], NAMES)), [found])
    assert image.kinds == ("hit", *["duplicate"] * 100)


def test_without_objects_or_detections(make_sample, make_detections):
    found = [make_detections([at(0)], [0.9], [A])]
    alone = analyse_errors(find_overlaps([make_sample([], [])], found, NAMES))
    assert by_image(alone, found)[0].kinds == ("background",) and np.isnan(alone.ap50)
    assert alone.summary() == "AP50 cannot be measured: there are no objects"
    blind = analyse_errors(find_overlaps([make_sample([at(0)], [A])], [make_detections([], [], [])], NAMES))
    assert (blind.ap50, blind.dap["missed"], blind.all_fixed) == (0, 1, 1)
    for result in (alone, blind):
        json.dumps(result.to_dict(), allow_nan=False)


def test_dictionary_and_summary_say_the_same(by_hand):
    result = analyse_errors(find_overlaps(*by_hand[:2], NAMES[:2]))
    table = result.to_dict()
    assert table["errors"] == {kind: int(number.sum()) for kind, number in result.counts.items()}
    assert table["dap50"] == {kind: round(result.dap[kind], 6) for kind in (*TYPES, *SPECIAL)}
    assert [row["name"] for row in table["classes"]] == ["a", "b"] and table["classes"][1]["ap50"] == 0
    lines = result.summary().splitlines()
    assert lines[0].startswith("AP50 0.129 of 5 objects") and lines[1].split()[:2] == ["classification", "+0.500"]
