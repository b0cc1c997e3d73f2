"""Proposals must cover more boxes by the audit's own count, change little, and be what ``train`` takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from retinanet.analysis.anchors import propose as module
from retinanet.analysis.anchors.audit import audit
from retinanet.analysis.anchors.propose import propose
from retinanet.analysis.anchors.report import section
from retinanet.analysis.anchors.search import Fit
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.types import Sample, Target

SIZE = Preprocess(short=160, long=160)
DEFAULT = AnchorLattice()


def scattered(sides, count=200, size=(160, 160), seed=0):
    """Images with five boxes each, anywhere; ``sides`` are (width, height), taken in turn."""
    dice = np.random.default_rng(seed)
    samples = []
    for number in range(count // 5):
        boxes = []
        for k in range(5):
            width, height = sides[(5 * number + k) % len(sides)]
            x, y = dice.uniform(0, size[1] - width), dice.uniform(0, size[0] - height)
            boxes.append([x, y, x + width, y + height])
        target = Target(torch.tensor(boxes).double(), torch.arange(5) % 2, torch.zeros(5, dtype=torch.bool))
        samples.append(Sample(Path(f"{number}.png"), number, size, target, torch.ones(5)))
    return samples


THIN = scattered([(6, 48), (48, 6)])
TINY = scattered([(6, 6)])
USUAL = scattered([(40, 40), (60, 60), (45, 80), (90, 50)])


def proposed(samples, **changes):
    return propose(samples, ("a", "b"), **{"lattice": DEFAULT, "preprocess": SIZE, **changes})


@pytest.mark.parametrize(
    ("samples", "gain"), [(THIN, 0.7), (TINY, 0.2), (THIN + TINY, 0.45)], ids=["thin", "tiny", "both"]
)
def test_thin_and_tiny_boxes_are_covered_at_the_same_size_of_images(samples, gain):
    found = proposed(samples, most_pixels=1)
    assert found.before.below(0.5) == 1.0  # the default anchors cover none of them
    assert found.after.below(0.5) <= 1 - gain and found.after.below(0.4) <= found.after.below(0.5)
    assert found.image == {"short": 160, "long": 160, "multiple": 32}
    new = replace(DEFAULT, **{key: tuple(values) for key, values in found.architecture_anchors.items()})
    assert new == found.after.lattice and new.num_anchors == DEFAULT.num_anchors
    assert new.sizes == tuple(sorted(new.sizes)) and new.ratios == tuple(sorted(new.ratios)) and new.scales[0] == 1
    for octaves in np.linspace(-4, 0, 25):  # no choice of size alone does better
        moved = replace(DEFAULT, sizes=tuple(size * 2**octaves for size in DEFAULT.sizes))
        other = audit(samples, ("a", "b"), lattice=moved, preprocess=SIZE)
        assert found.after.below(0.5) <= other.below(0.5) + 0.01
    fresh = audit(samples, ("a", "b"), lattice=new, preprocess=SIZE)  # after is the audit of what is proposed
    assert np.array_equal(fresh.best_iou, found.after.best_iou)


def test_larger_images_are_proposed_where_anchors_alone_are_not_enough():
    small, large = proposed(TINY, most_pixels=1), proposed(TINY, most_pixels=4)
    assert large.after.below(0.5) < small.after.below(0.5) - 0.02
    assert 160 < large.image["short"] <= 320 and large.image["long"] == large.image["short"]
    assert large.after.preprocess == replace(SIZE, short=large.image["short"], long=large.image["long"])
    pixels = [option["pixels"] for option in large.list_options()]
    assert pixels == sorted(pixels) and pixels[0] == 1 and 1.5 < pixels[-1] <= 4
    assert large.options["as it is"].lattice == DEFAULT and large.options["as it is"].covered == 0


def test_nothing_is_proposed_where_the_anchors_fit():
    found = proposed(USUAL)
    assert found.before.below(0.5) <= 0.01
    assert not found.changed and found.after is found.before and not found.architecture_anchors
    assert "nothing to change" in found.reason
    assert yaml.safe_load(found.to_yaml()) == {"image": {"short": 160, "long": 160, "multiple": 32}}


def test_a_class_that_is_rare_and_missed_is_named():
    rare = scattered([(5, 5)], count=5)[0]
    rare = replace(rare, target=replace(rare.target, labels=torch.ones(5, dtype=torch.int64)))
    usual = [
        replace(one, target=replace(one.target, labels=torch.zeros(5, dtype=torch.int64)))
        for one in scattered([(40, 40), (60, 60)], count=1000)
    ]
    found = proposed([*usual, rare])
    assert not found.changed and "though of the class b they cover 0.0%" in found.reason


@pytest.mark.parametrize("samples", [[], [scattered([(3, 3)])[0]]], ids=["no image", "zero area"])
def test_no_box_to_fit(samples):
    flat = [replace(one, target=replace(one.target, boxes=one.target.boxes[:, [0, 1, 0, 1]])) for one in samples]
    found = proposed(flat)
    assert not found.changed
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_same_data_give_the_same_proposal_whatever_happened_before():
    many = scattered([(6, 48), (9, 30), (12, 12), (7, 7)], count=1500)  # more than are looked at
    one = proposed(many, most_pixels=1)
    np.random.normal(), torch.rand(1)
    assert proposed(many, most_pixels=1).to_dict() == one.to_dict()


def test_what_hardly_matters_stays():
    """Square boxes, and anchors that are four times too large: their ratios and scales are as good as any."""
    large = replace(DEFAULT, sizes=(128, 256, 512, 1024, 2048))
    found = proposed(scattered([(40, 40), (50, 50), (64, 64)]), lattice=large)
    assert found.architecture_anchors["ratios"] == [0.5, 1.0, 2.0]
    assert found.architecture_anchors["scales"] == list(DEFAULT.scales)
    assert found.architecture_anchors["sizes"][0] < 64 and found.after.below(0.5) <= 0.01


def test_mistakes_are_named():
    with pytest.raises(UserError, match="most_pixels >= 1"):
        proposed(THIN, most_pixels=0.5)


@pytest.mark.parametrize(
    "lattice", [DEFAULT, AnchorLattice(sizes=(8, 16, 32, 64, 128), compat=LatticeCompat(inclusive=True))]
)
def test_the_search_counts_as_the_audit_does(lattice):
    size = Preprocess(short=128, long=160)
    samples = scattered([(9, 30), (40, 25), (6, 6)], size=(128, 160))
    audited = audit(samples, ("a", "b"), lattice=lattice, preprocess=size)
    fit = Fit(audited, np.random.default_rng(0))
    assert np.allclose(fit.iou(lattice), audited.best_iou, atol=1e-5)


def option(pixels, covered, lattice=DEFAULT):
    """One whose anchors cover this share of a thousand boxes."""
    short = round(100 * pixels**0.5)
    best_iou = np.where(np.arange(1000) < 1000 * covered, 1, 0).astype(np.float32)
    audited = audit([], (), lattice=lattice, preprocess=Preprocess(short=short, long=short))
    return replace(audited, best_iou=best_iou)


NEW = AnchorLattice(ratios=(1, 2, 3))


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ([option(1, 0.5), option(1, 0.995, NEW)], 1),
        ([option(1, 0.5), option(1, 0.9, NEW), option(2, 0.6), option(2, 0.991, NEW)], 3),
        ([option(1, 0.5), option(1, 0.98, NEW), option(2, 0.6), option(2, 0.991, NEW)], 1),  # 1.1 % are not worth it
        ([option(1, 0.5), option(1, 0.8, NEW), option(2, 0.906), option(2, 0.91, NEW)], 2),  # nor new anchors 0.4 %
        ([option(1, 0.9), option(1, 0.904, NEW), option(2, 0.91)], 0),
        ([option(1, 0.9), option(1, 0.91, NEW), option(2, 0.91)], 1),
        ([option(1, 0.98), option(1, 0.992, NEW)], 1),
    ],
)
def test_the_cheapest_that_is_good_enough_is_taken(options, chosen):
    assert module._choose(options) is options[chosen]


def test_the_file_is_what_train_takes(data, tiny_words, tmp_path, monkeypatch):
    """A real run with the file in place of options for anchors and images, and another key of the same mapping."""
    small = scattered([(3, 20), (20, 3)], count=100, size=(64, 80))
    found = proposed(small, preprocess=Preprocess(short=64, long=96), most_pixels=1)
    assert found.architecture_anchors
    (tmp_path / "anchors.yaml").write_text(found.to_yaml())
    assert yaml.safe_load(found.to_yaml()) == {
        "architecture": {"anchors": found.architecture_anchors},
        "image": found.image,
    }
    words = []
    for name, value in zip(tiny_words[::2], tiny_words[1::2], strict=True):
        if not name.startswith(("--architecture.anchors", "--image", "--epochs")):
            words += [name, value]
    words += ["--epochs", "1", "--config", str(tmp_path / "anchors.yaml"), "--output", str(tmp_path / "run")]
    assert main(["train", str(data), *words]) == 0
    detector = Detector.load(tmp_path / "run")
    assert detector.spec.architecture.anchors == found.after.lattice and detector.spec.architecture.channels == 32
    size = detector.spec.preprocess
    assert {"short": size.short, "long": size.long, "multiple": size.multiple} == found.image


def test_it_can_be_told():
    found = proposed(THIN, most_pixels=1)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert told["before"]["below_foreground"] == 1 and told["after"]["below_foreground"] < 0.3 and told["changed"]
    assert "boxes below IoU 0.5: 100.0% -> " in found.summary() and "ratios: " in found.summary()
    part = section(found.before, found)
    assert (
        len(part.figures) == 4
        and part.tables[0].rows[0][0] == "as it is"
        and found.to_yaml().split("\n")[2] in part.text
    )
