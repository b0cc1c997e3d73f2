"""All of the error analysis at once: the parts agree with each other, and the page holds them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.analysis.errors.curves import best_thresholds
from retinanet.analysis.errors.report import error_report, picture_worst, section, worst_images
from retinanet.analysis.errors.tide import FALSE, TYPES
from retinanet.data.dataset import DetectionDataset
from retinanet.evaluation.matching import match_image
from retinanet.plotting.html import render_page

NAMES = ("a", "b", "c")


@pytest.fixture
def scene(make_scene, tmp_path):
    """Samples whose images lie on the disk."""
    samples, detections = make_scene(11, images=6)
    there = []
    for sample in samples:
        path = tmp_path / f"{sample.image_id}.png"
        Image.effect_noise((520, 520), 30).convert("RGB").save(path)
        there.append(replace(sample, path=path, size=(520, 520)))
    return there, detections


def test_the_parts_agree(scene):
    report = error_report(*scene, NAMES)
    thresholds = best_thresholds(report.curves)
    assert report.confusion.thresholds == tuple(thresholds[name] for name in NAMES)
    # what is shown at the thresholds: hits on the diagonal, every overlooked object, every false detection
    found = np.array([curve.precision[curve.best] for curve in report.curves])
    assert np.diag(report.confusion.matrix)[:3].tolist() == report.shown.hits.tolist()
    given = report.confusion.matrix[:, :3].sum(axis=0)
    np.testing.assert_allclose(report.shown.hits / given, found, rtol=0, atol=1e-12)
    false = sum(report.shown.counts[kind].sum() for kind in FALSE)
    assert false == given.sum() - report.shown.hits.sum() > 0
    assert report.errors.ap50 == pytest.approx(np.mean([curve.ap50 for curve in report.curves]), abs=1e-12)
    assert report.calibration[0].counts.sum() == report.errors.hits.sum() + sum(
        report.errors.counts[kind].sum() for kind in FALSE
    )
    assert sum(group.objects for group in report.groups["density"]) == report.errors.objects.sum()


def test_the_worst_images_come_first(scene):
    samples, detections = scene
    report = error_report(samples, detections, NAMES)
    ranked = worst_images(report.shown, 3)
    expected = []
    for index, (sample, found) in enumerate(zip(samples, detections, strict=True)):
        _, false, missed = match_image(found.above(best_thresholds(report.curves)), sample.target)
        expected.append((len(false) + len(missed), -index))
    expected.sort(reverse=True)
    assert [(number, -index) for index, number in ranked] == expected[:3]
    assert worst_images(report.shown, 0) == []


def test_numbers_and_page(scene):
    samples, detections = scene
    report = error_report(samples, detections, NAMES)
    table = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert table["errors"]["ap50"] == pytest.approx(report.errors.ap50, abs=1e-6) and len(table["curves"]) == 3
    assert report.errors.summary() in report.summary() and report.calibration[0].summary() in report.summary()
    sections, pictures = section(report), picture_worst(report, DetectionDataset(samples, NAMES), detections, most=2)
    for picture, (index, number) in zip(pictures, worst_images(report.shown, 2), strict=True):
        hits, false, missed = map(len, report.shown.judge_image(index))
        assert picture.title == samples[index].path.name and false + missed == number
        assert picture.text == f"{hits} found, {false} false and {missed} missed at the thresholds of the best F1"
    assert [len(part.figures) for part in sections] == [1, 2, 1, 1]
    costs = sections[0].tables[0].rows
    gains = [row[3] for row in costs[:6]]
    assert gains == sorted(gains, reverse=True) and {row[0] for row in costs[:6]} == set(TYPES)
    page = render_page("errors", sections, {}, None, pictures)
    assert page.count("<img") == 7 and "nan" not in page.split("base64")[0]


def test_a_class_never_seen_and_never_found(make_sample, make_detections):
    sample = make_sample([[0, 0, 10, 10]], [0])
    found = make_detections([], [], [])
    report = error_report([sample], [found], NAMES)
    json.dumps(report.to_dict(), allow_nan=False)
    assert (
        "a: no detection is right, 1 objects" in report.summary() and "AP by sizes: small 0.000 (1)" in report.summary()
    )
    render_page("errors", section(report), {})
    assert torch.isnan(torch.tensor(report.curves[1].f1))
